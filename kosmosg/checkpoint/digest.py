"""The identity of a model: a digest of the contents of its folder, independent of the folder's path and name."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kosmosg.errors import CheckpointError
from kosmosg.node_cache import file_digest

_CONTENT = {".safetensors", ".bin", ".json", ".model", ".txt"}
"""Weights, configurations, tokenizers. Model cards and run settings say how a model was made, not what it is."""

_NOT_THE_MODEL = {"aligner_decoder"}
"""Subfolders that are not used for generation: only another stage 2 needs the aligner's decoder N."""


def model_digest(folder: str | Path, parts: Sequence[str] | None = None) -> str:
    """sha256 of the weights and configuration files of a model, as 64 hexadecimal digits.

    The same for copies; different if any byte or file name changes. Files that are not part of the model (README.md,
    experiment.yaml, the aligner's decoder) do not count. A node reads a file once, until its size or timestamps change.

    Args:
        folder: an export, a pipeline, or a decoder.
        parts: if given, only these subfolders count, such as `("unet", "vae", "scheduler")` of a decoder.

    Raises:
        CheckpointError: there are no weights.
    """
    root = Path(folder)
    files = [path for path in sorted(root.rglob("*")) if _counts(path.relative_to(root), parts) and path.is_file()]
    if not any(path.suffix in (".safetensors", ".bin") for path in files):
        raise CheckpointError(f"there are no weights in {root}; give an export, a pipeline or a decoder folder")
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def _counts(path: Path, parts: Sequence[str] | None) -> bool:
    if path.suffix not in _CONTENT or any(part in _NOT_THE_MODEL or part.startswith(".") for part in path.parts):
        return False
    return parts is None or path.parts[0] in parts
