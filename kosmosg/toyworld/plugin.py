"""What the toy world adds to the registries. Imported by `kosmosg.plugins.load_plugins`, never by name elsewhere.

Kept light: entries name what they load, and load it when they are used.
"""

from kosmosg.hub import MODELS, ShippedModels
from kosmosg.toyworld.assets import TRAINED, toyworld_folder

MODELS["toyworld"] = ShippedModels(toyworld_folder(), TRAINED, default_steps=20, default_guidance=3.0)
