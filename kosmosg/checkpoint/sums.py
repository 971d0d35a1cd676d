"""`SHA256SUMS` of a model folder: what its files were when it was written, so that damage is noticed when it is loaded.

The format is that of the program sha256sum, which checks it too: `cd FOLDER && sha256sum -c SHA256SUMS`. Model card and
run settings are not listed; they may be edited.
"""

from pathlib import Path

from kosmosg.errors import CheckpointError
from kosmosg.node_cache import digest_again, file_digest

SUMS = "SHA256SUMS"
_MAY_CHANGE = {SUMS, "README.md", "experiment.yaml"}


def write_sums(folder: Path) -> None:
    """List every file of a folder and its subfolders, except those that may be edited."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{digest_again(folder / name)}  {name}\n" for name in names if name not in _MAY_CHANGE]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def verify_sums(folder: Path, within: str = "") -> None:
    """Compare the files of a folder, or those `within` a subfolder, with its list; a node reads a file once for it.

    A folder without a list passes: those of earlier releases, and models that were put together by hand.

    Raises:
        CheckpointError: a file is missing or another one, or the list cannot be read.
    """
    path = folder / SUMS
    if not path.is_file():
        return
    for name, expected in _read(path).items():
        if within and not name.startswith(f"{within}/"):
            continue
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{folder} lacks {name}, which its {SUMS} lists; copy the folder again")
        # What the node has kept is no ground to refuse a file: it is read again first.
        if file_digest(file) != expected and (found := digest_again(file)) != expected:
            raise CheckpointError(
                f"{file} has the sha256 {found}, {SUMS} says {expected}: it is damaged, or was changed after it was "
                f"written; copy the folder again, or delete {path} if the change is yours"
            )


def _read(path: Path) -> dict[str, str]:
    """sha256 by the file's path within the folder."""
    found = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            digest, name = line.split(maxsplit=1)
            if len(bytes.fromhex(digest)) != 32 or name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"line {line!r}")
            found[name.removeprefix("*")] = digest.lower()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy the folder again, or delete the list") from error
    return found


__all__ = ["SUMS", "verify_sums", "write_sums"]
