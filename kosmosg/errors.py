"""The mistakes a user can make, each told in one clear sentence.

Every class also is a `ValueError`, so library users who never heard of this module can still catch it. Command-line
programs print the message on standard error and end with exit code 2; the HTTP server turns it into a 4xx answer.
Anything else that is raised is a fault of ours and keeps its traceback.
"""


class KosmosGError(ValueError):
    """Base of all mistakes that the caller can mend. The message names both values and the remedy."""


class PromptError(KosmosGError):
    """A prompt that cannot be read: images and places disagree, it is too long, a part has an unknown type."""


class ImageError(KosmosGError):
    """An image that cannot be used: not decodable, too large, empty, a decompression bomb."""


class CheckpointError(KosmosGError):
    """A folder or file that is not the checkpoint it should be: missing, of another kind or of another size."""


class DataError(KosmosGError):
    """A dataset folder or source that is missing, unfinished, damaged or of another kind."""


class ConfigError(KosmosGError):
    """A setting that does not exist or cannot be; the message begins with its dotted path."""
