"""User errors, each with a message of one clear sentence.

Every class is also a `ValueError`, so library users can catch it without knowing this module. Command-line programs
print the message to standard error and end with exit code 2; the HTTP server turns it into a 4xx response. Any other
exception is a bug and keeps its traceback.
"""


class KosmosGError(ValueError):
    """Base of all errors that the caller can fix. The message names both values and the remedy."""


class PromptError(KosmosGError):
    """An invalid prompt: images and places do not match, it is too long, or a part has an unknown type."""


class ImageError(KosmosGError):
    """An image that cannot be used: not decodable, too large, empty, a decompression bomb."""


class CheckpointError(KosmosGError):
    """A folder or file that is not the expected checkpoint: missing, of another kind or of another size."""


class DataError(KosmosGError):
    """A dataset folder or source that is missing, incomplete, damaged or of another kind."""


class ConfigError(KosmosGError):
    """A setting that does not exist or has an invalid value; the message begins with its dotted path."""
