"""User errors, each with a message of one clear sentence.

Every class is also a `ValueError`, so library users can catch it without knowing this module. Command-line programs
print the message to standard error and end with exit code 2; the HTTP server turns it into a 4xx response.
`UnavailableError` says that the same command will do later, and ends with exit code 1. Any other exception is a bug and
keeps its traceback.
"""

import errno


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


class UnavailableError(Exception):
    """What a run needs is away for now: an object store, room on a disk. The message names it and the remedy.

    No fault of the rows that were read or written meanwhile, so it is never a reason to reject them. Not a
    `KosmosGError`: what handles values that are wrong must not swallow it.
    """


class DiskError(UnavailableError):
    """A disk that is full or cannot be written."""


DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""`OSError.errno` of a disk that is full, beyond a quota or a file-size limit, or read-only."""
MACHINE_ERRORS = DISK_ERRORS | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Those, and of a machine that has no file handles or memory left."""
