"""The state of a training run on disk, in a form that knows nothing of workers, ZeRO stages or precision.

    CHECKPOINT/state-00000.safetensors ...   weights, AdamW moments and average, full fp32 tensors by parameter name
    CHECKPOINT/manifest.json                 step, optimizer steps, loss scale; name, size and sha256 of every shard

Each worker writes the parameters it was assigned, so that no machine has to hold them all; any number of workers reads
them back. A folder counts as a checkpoint only when every file of its manifest is there with the content it was written
with.

What cannot be read is never deleted, for it may be readable tomorrow: by another release, or once a shared file system
shows all of it. A run resumes from its newest readable checkpoint. Where none can be read it is refused with the
reasons, and starts over only when `train.restart` says so.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kosmosg.errors import CheckpointError, DataError
from kosmosg_platform.config import digest
from kosmosg_platform.storage import read_json, write_json

VERSION = 2
READABLE = (1, 2)
"""Versions that this release reads. Version 1 knows the sizes of its files, but not their content."""
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


@dataclass(frozen=True)
class WrittenShard:
    """One worker's file of a checkpoint, as the manifest lists it."""

    name: str
    bytes: int
    sha256: str


def write_shard(folder: Path, rank: int, tensors: Mapping[str, Tensor]) -> WrittenShard:
    """Write one worker's tensors; returns what the manifest needs to know of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{rank:05d}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return WrittenShard(path.name, path.stat().st_size, _sha256(path))


def write_manifest(folder: Path, progress: TrainingProgress, shards: Iterable[WrittenShard]) -> None:
    """Write what makes the folder a checkpoint; `shards` are those of all workers."""
    files = {shard.name: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards}
    content = {"version": VERSION, "progress": asdict(progress), "files": files}
    write_json(folder / MANIFEST, {**content, "sha256": digest(content)})


def read_progress(folder: Path, verify: bool = False) -> TrainingProgress:
    """The manifest's progress.

    `verify` also reads every shard and compares its content (sha256) with the manifest; without it, sizes are compared.
    Raises CheckpointError with the reason when the folder is not a complete checkpoint that this release reads.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        size = expected if manifest["version"] == 1 else expected["bytes"]
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{folder} is not complete: {name} {state}, its manifest says {size}")
        if verify and manifest["version"] > 1 and _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{folder} is damaged: {name} does not have the content that its manifest says")
    try:
        return TrainingProgress(**manifest["progress"])
    except TypeError as error:
        raise CheckpointError(f"{folder}/{MANIFEST} is damaged: {error}") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, checked in itself. Raises CheckpointError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is not complete: it has no {MANIFEST}")
    try:
        manifest = read_json(path)
    except (DataError, OSError) as error:
        raise CheckpointError(str(error)) from None
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version not in READABLE:
        readable = " and ".join(str(one) for one in READABLE)
        raise CheckpointError(f"{folder} has checkpoint version {version}, this release reads {readable}")
    files, progress = manifest.get("files"), manifest.get("progress")
    intact = isinstance(files, dict) and isinstance(progress, dict)
    if version == 1:
        intact = intact and all(isinstance(size, int) for size in files.values())
    else:
        content = {name: value for name, value in manifest.items() if name != "sha256"}
        intact = intact and manifest.get("sha256") == digest(content)
    if not intact:
        raise CheckpointError(f"{path} is damaged: it does not have the content it was written with")
    return dict(manifest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class State(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read from disk when asked for. Raises CheckpointError."""

    def __init__(self, folder: Path) -> None:
        self.progress = read_progress(folder)
        self._where: dict[str, Any] = {}
        for name in _read_manifest(folder)["files"]:
            try:
                file: Any = safe_open(folder / name, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{folder} is damaged: {name} cannot be opened ({error})") from None
            self._where.update(dict.fromkeys(file.keys(), file))

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._where[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


@dataclass(frozen=True)
class CheckpointSurvey:
    """What a folder holds of one run's checkpoints."""

    newest: Path | None
    """The readable one that is furthest; None without one."""
    step: int
    """Its optimizer steps; 0 without one."""
    superseded: tuple[Path, ...]
    """Other readable checkpoints, none of them further than `newest`."""
    unreadable: tuple[str, ...]
    """For every folder that cannot be read: which one, and why."""


def survey(folder: Path, key: str) -> CheckpointSurvey:
    """All checkpoints of the run `key` under all attempts in `folder`, with their contents verified.

    Those of other runs are left out. Also what is superseded is verified: it is what gets deleted.
    """
    readable: list[tuple[int, Path]] = []
    unreadable: list[str] = []
    for candidate in sorted(folder.glob("*/*/")):
        if not candidate.is_dir():
            continue
        try:
            if read_progress(candidate).key == key:
                readable.append((read_progress(candidate, verify=True).step, candidate))
        except CheckpointError as error:
            unreadable.append(str(error))
    readable.sort(key=lambda one: -one[0])  # stable: of equal steps the first by name
    step, best = readable[0] if readable else (0, None)
    return CheckpointSurvey(best, step, tuple(path for _, path in readable[1:]), tuple(unreadable))


def newest(folder: Path, key: str, say: Callable[[str], None]) -> CheckpointSurvey:
    """The survey of a run whose `newest` is where it resumes; that is None where it has never written a checkpoint.

    Each checkpoint that is passed over because it cannot be read is reported through `say`. Raises CheckpointError with
    every reason when there are checkpoints, but none that can be read.
    """
    found = survey(folder, key)
    if found.newest is None and found.unreadable:
        raise CheckpointError(
            f"no checkpoint of this run can be read: {'; '.join(found.unreadable)}. Nothing was deleted: run the same "
            "command again once one of them can be read, or start over with train.restart=true"
        )
    for reason in found.unreadable:
        say(f"{reason}; it is kept but not used, the newest readable checkpoint is that of step {found.step}")
    return found


def clean(folder: Path, found: CheckpointSurvey) -> None:
    """Remove the checkpoints that a newer one has superseded, all of them verified.

    What cannot be read stays, and so does what belongs to another run. An attempt's folder goes with its last
    checkpoint; what else is in it are Ray's notes.
    """
    for path in found.superseded:
        shutil.rmtree(path, ignore_errors=True)
        if not any(part.is_dir() for part in path.parent.iterdir()):
            shutil.rmtree(path.parent, ignore_errors=True)


def load_weights(stage_parameters: Sequence[tuple[str, nn.Parameter]], state: Mapping[str, Tensor], kind: str) -> None:
    """Copy `kind` (`param` or `ema`) into parameters. Raises CheckpointError on missing names or other shapes."""
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
