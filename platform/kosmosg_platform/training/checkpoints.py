"""The state of a training run on disk, in a form that knows nothing of workers, ZeRO stages or precision.

    CHECKPOINT/state-00000.safetensors ...   weights, AdamW moments and average, full fp32 tensors by parameter name
    CHECKPOINT/manifest.json                 step, optimizer steps, loss scale, and the name and size of every file

Each worker writes the parameters it was assigned, so that no machine has to hold them all; any number of workers reads
them back. A folder counts as a checkpoint only when every file of its manifest is there in full size: a folder that a
killed worker left half-written is nothing, whatever its name says.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kosmosg.errors import CheckpointError, DataError
from kosmosg_platform.storage import read_json, write_json

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TrainingProgress:
    """Where a run stands; together with the tensors, all that resuming needs."""

    key: str
    """The run's identity; a checkpoint of another run is refused."""
    step: int
    """Optimizer steps taken; also the position of learning rate and, times the global batch, of the data."""
    optimizer_steps: int
    """Steps that changed the weights; fewer than `step` when fp16 skipped some."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """State of dynamic loss scaling (fp16)."""
    seconds: float = 0.0
    """Time spent training so far, over all attempts."""
    written_by: dict[str, object] = field(default_factory=dict)
    """Workers, ZeRO stage and precision that wrote it; for people, never needed to read it."""


def assign(parameters: Sequence[tuple[str, nn.Parameter]], sizes: Sequence[int], workers: int) -> list[set[str]]:
    """Which worker writes which parameters: largest first, each to the worker that has least."""
    owned: list[set[str]] = [set() for _ in range(workers)]
    loads = [0] * workers
    order = sorted(range(len(parameters)), key=lambda index: -sizes[index])
    for index in order:
        worker = loads.index(min(loads))
        owned[worker].add(parameters[index][0])
        loads[worker] += sizes[index]
    return owned


def write_shard(folder: Path, rank: int, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Write one worker's tensors; gives the file's name and size for the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{rank:05d}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path.name, path.stat().st_size


def write_manifest(folder: Path, progress: TrainingProgress, files: Iterable[tuple[str, int]]) -> None:
    """Write what makes the folder a checkpoint; `files` are the shards of all workers."""
    write_json(folder / MANIFEST, {"version": VERSION, "progress": asdict(progress), "files": dict(files)})


def read_progress(folder: Path) -> TrainingProgress:
    """The manifest's progress. Raises CheckpointError when the folder is no complete checkpoint."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {MANIFEST}")
    try:
        manifest = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None  # torn while it was copied here
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint version {manifest.get('version')}, this program reads {VERSION}"
        )
    for name, size in manifest["files"].items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{folder} is not complete: {name} {state}, its manifest says {size}")
    return TrainingProgress(**manifest["progress"])


class State(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read from disk when asked for. Raises CheckpointError."""

    def __init__(self, folder: Path) -> None:
        self.progress = read_progress(folder)
        self._where: dict[str, Any] = {}
        for name in read_json(folder / MANIFEST)["files"]:
            file: Any = safe_open(folder / name, framework="pt")
            self._where.update(dict.fromkeys(file.keys(), file))

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._where[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def newest(folder: Path, key: str) -> Path | None:
    """The complete checkpoint of the run `key` that is furthest, under all attempts in `folder`; None without one."""
    best: tuple[int, Path] | None = None
    for candidate in sorted(folder.glob(f"*/*/{MANIFEST}")):
        try:
            progress = read_progress(candidate.parent)
        except CheckpointError:
            continue  # half-written or damaged: an earlier one serves
        if progress.key == key and (best is None or progress.step > best[0]):
            best = (progress.step, candidate.parent)
    return best[1] if best else None


def clean(folder: Path, keep: Path | None) -> None:
    """Remove everything under `folder` except the checkpoint `keep`: older ones, and what killed workers left."""
    for attempt in folder.glob("*"):
        if keep is None or attempt != keep.parent:
            shutil.rmtree(attempt, ignore_errors=True)
            continue
        for other in attempt.iterdir():
            if other != keep:
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)


def load_weights(stage_parameters: Sequence[tuple[str, nn.Parameter]], state: Mapping[str, Tensor], kind: str) -> None:
    """Copy `kind` (`param` or `ema`) into parameters. Raises CheckpointError on missing names or other shapes."""
    import torch

    with torch.no_grad():
        for name, parameter in stage_parameters:
            value = state.get(f"{kind}.{name}")
            if value is None or value.shape != parameter.shape:
                found = "nothing" if value is None else f"a tensor of {tuple(value.shape)}"
                raise CheckpointError(
                    f"the checkpoint has {found} for {name}, the stage needs {tuple(parameter.shape)}; "
                    "it was made by another stage or model"
                )
            parameter.copy_(value)
