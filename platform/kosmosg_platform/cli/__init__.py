"""The command `kosmosg`."""
