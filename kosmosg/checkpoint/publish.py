"""Atomic writes of folders, which replace only folders of their own kind.

`publish_folder` fills a temporary folder beside the destination, which is then renamed: readers see the earlier folder
or the new one, never half of one. An earlier folder is replaced only if it contains nothing but the files of such a
folder (`FolderLayout`). If it contains any other file, or a model of another kind, nothing is changed.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from kosmosg.errors import CheckpointError

WEIGHTS = ("model.safetensors", "model-[0-9]*-of-[0-9]*.safetensors", "model.safetensors.index.json")
"""Patterns of the weight files of transformers."""
UNET_WEIGHTS = tuple(f"diffusion_pytorch_{pattern}" for pattern in WEIGHTS)
"""Patterns of the weight files of diffusers."""


@dataclass(frozen=True)
class FolderLayout:
    """The contents of one kind of folder, which distinguish it from any other folder."""

    kind: str
    """With its article, for messages: "an export"."""
    files: tuple[str, ...]
    """Patterns of all files, relative to the folder; `*` matches within one name, never across a slash."""
    identity: tuple[str, str, object]
    """A JSON file, a key in it, and the value that only this kind of folder has there."""
    kept: tuple[str, ...] = ()
    """Subfolders that others put there: a new folder keeps them unchanged."""

    def foreign_file(self, folder: Path) -> str | None:
        """The first path in a folder, relative to it, that does not belong in such a folder; None if there is none."""
        return next((path.as_posix() for path in _contents(folder, self.kept) if not self._holds(folder, path)), None)

    def identifies(self, folder: Path) -> bool:
        """Whether the identifying file says that a folder is of this kind."""
        name, key, value = self.identity
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(content, dict) and content.get(key) == value

    def _holds(self, folder: Path, path: PurePath) -> bool:
        if (folder / path).is_dir():
            return any(_matches(path.parts, pattern.split("/")[: len(path.parts)]) for pattern in self.files)
        return any(_matches(path.parts, pattern.split("/")) for pattern in self.files)


def check_replaceable(folder: Path, layout: FolderLayout) -> None:
    """Raise CheckpointError, naming the file in the way, unless `publish_folder` may write `folder`.

    It may if the folder does not exist, is empty, or is of this kind and contains nothing else. Links are rejected.
    """
    remedy = f"name a folder that is new, empty or {layout.kind} alone"
    if folder.is_symlink():
        raise CheckpointError(f"{folder} is a link to {os.readlink(folder)}; {remedy}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; {remedy}")
    if not any(folder.iterdir()):
        return
    foreign = layout.foreign_file(folder)
    if foreign is not None:
        raise CheckpointError(f"{folder} holds {foreign}, which is no part of {layout.kind}; move it away, or {remedy}")
    if not layout.identifies(folder):
        name = layout.identity[0]
        raise CheckpointError(f"{folder} is not {layout.kind}: its {name} is missing or of something else; {remedy}")


def publish_folder(folder: Path, layout: FolderLayout, fill: Callable[[Path], None]) -> Path:
    """Create a folder atomically: `fill` writes into a temporary folder beside it, which is then renamed.

    An earlier folder of the same kind is replaced. If something else is there (`check_replaceable`), raises
    CheckpointError before `fill` is called, and changes nothing.
    """
    target = Path(os.path.abspath(folder))  # a draft needs a name and a parent, which "." does not have
    check_replaceable(target, layout)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        draft.chmod(0o755)  # a temporary folder is readable by its owner only
        fill(draft)
        check_replaceable(target, layout)  # filling takes minutes, in which another file may have appeared there
        for name in layout.kept:
            if (target / name).is_dir():
                shutil.copytree(target / name, draft / name, symlinks=True)
        _swap(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _swap(draft: Path, target: Path) -> None:
    """Rename the temporary folder; the earlier folder is deleted only after that succeeded, and otherwise restored."""
    if not target.exists():
        os.replace(draft, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        os.replace(target, old / target.name)
        try:
            os.replace(draft, target)
        except BaseException:
            os.replace(old / target.name, target)
            raise
    except BaseException:
        old.rmdir()
        raise
    shutil.rmtree(old)


def _contents(folder: Path, kept: tuple[str, ...]) -> Iterator[PurePath]:
    """Everything in a folder, files and subfolders, except the subfolders in `kept`."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] not in kept:
            yield relative


def _matches(parts: tuple[str, ...], pattern: list[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


__all__ = ["UNET_WEIGHTS", "WEIGHTS", "FolderLayout", "check_replaceable", "publish_folder"]
