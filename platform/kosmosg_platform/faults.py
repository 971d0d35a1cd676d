"""What ends a build or a training through no fault of its own, told in one sentence: a store that is away, a full disk.

Errors of workers come wrapped by Ray, with a traceback for text; what they were is inside.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kosmosg.errors import DISK_ERRORS, MACHINE_ERRORS, DiskError, KosmosGError, UnavailableError

_RAYS_ADVICE = "\nFailed to "  # Ray Data appends to messages how its own retries are set
_REMEDIES = {
    errno.EROFS: "make it writable",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close what else runs on the machine",
    errno.ENOMEM: "free memory",
}


_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
"""How Rust (safetensors) and Arrow write the number of an error."""


@contextmanager
def told_in_a_sentence(folder: Path) -> Iterator[None]:
    """Errors in this block that are no bugs, wherever they were raised, as what they are.

    Args:
        folder: where the build writes.

    Raises UnavailableError when the same command will do later, KosmosGError as it was raised; others pass.
    """
    try:
        yield
    except Exception as error:
        origin = _origin(error)
        if isinstance(origin, KosmosGError | UnavailableError):
            if origin is error:
                raise
            origin.args = (str(origin).partition(_RAYS_ADVICE)[0],)
            raise origin from None
        told = disk_error(origin, folder)
        if told is None:
            raise
        raise told from error


def _origin(error: BaseException) -> BaseException:
    """What a worker raised."""
    while (inner := getattr(error, "cause", None)) is not None and isinstance(inner, BaseException):
        error = inner
    return error


def disk_error(error: BaseException, folder: Path) -> DiskError | None:
    """What to tell of an error that is no bug but a disk, or a machine, without room; None for all others.

    Args:
        error: as it was raised; libraries written in Rust or C++ tell of the disk in their messages only.
        folder: what was written, named where the error names nothing.
    """
    again = "and run the same command again: what is finished is kept"
    if not (isinstance(error, OSError) and error.errno) and (number := _NUMBER.search(str(error))):
        error = OSError(int(number[1] or number[2]), str(error))
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS | {errno.EACCES, errno.EPERM}:
        # Ray Data's advice, appended to what an OSError is made of, stands where the name of a file would.
        named = error.filename and not str(error.filename).startswith(_RAYS_ADVICE.strip("\n"))
        place = error.filename if named else folder
        remedy = _REMEDIES.get(error.errno, f"make room ({_free(folder)} are free)")
        what = "cannot be written" if error.errno in DISK_ERRORS else "cannot be opened"
        return DiskError(f"{place} {what}: {os.strerror(error.errno)}; {remedy} {again}")
    ray = sys.modules.get("ray")
    if ray is not None and isinstance(error, ray.exceptions.OutOfDiskError | ray.exceptions.ObjectStoreFullError):
        return DiskError(
            "Ray has no room for what its workers pass on to each other, neither in memory nor in its temporary "
            f"folder; make room there, or give Ray another (ray start --temp-dir), {again}"
        )
    return None


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MB"
