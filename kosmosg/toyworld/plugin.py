"""What the toy world adds to the registries. Imported by `kosmosg.plugins.load_plugins`, never by name elsewhere.

Kept light: entries name what they load, and load it when they are used.
"""
