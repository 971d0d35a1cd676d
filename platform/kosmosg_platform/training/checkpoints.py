"""The state of a training run on disk, in a form that does not depend on workers, ZeRO stage or precision.

    CHECKPOINT/state-00000.safetensors ...   weights, AdamW moments and EMA weights, full fp32 tensors by parameter name
    CHECKPOINT/manifest.json                 step, optimizer steps, loss scale; name, size and sha256 of every shard

Each worker writes the parameters assigned to it, so that no machine has to hold them all; any number of workers can
read them back. A folder counts as a checkpoint only if every file in its manifest exists with its original content.

A checkpoint that cannot be read is never deleted, because it may be readable later: by another release, or once a
shared file system shows all of it. One whose content has changed is set aside under another name. A run resumes from
its newest readable checkpoint. If none can be read, the run is refused with the reasons, and starts over only with
`train.restart`.
"""

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
from kosmosg_platform.storage import file_sha256, read_json, write_json, write_text

VERSION = 2
READABLE = (1, 2)
"""Versions that this release reads. Version 1 stores the sizes of its files but no digests."""
MANIFEST = "manifest.json"
REASON = "damaged.txt"
"""In a checkpoint that was set aside: why."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint all of which is there, with other content than was written."""


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a run; together with the tensors, everything needed to resume."""

    key: str
    """The run's identity; checkpoints of other runs are rejected."""
    step: int
    """Optimizer steps taken; also the position in the learning rate schedule and, times the global batch, in
    the data."""
    optimizer_steps: int
    """Steps that changed the weights; fewer than `step` if fp16 skipped some."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """State of dynamic loss scaling (fp16)."""
    base: str = ""
    """Identity of model, data and their order, which runs that go on from this checkpoint must share."""
    seconds: float = 0.0
    """Time spent training so far, over all attempts."""
    written_by: dict[str, object] = field(default_factory=dict)
    """Workers, ZeRO stage and precision that wrote it; informational only."""


def assign(parameters: Sequence[tuple[str, object]], sizes: Sequence[int], workers: int) -> list[set[str]]:
    """Which worker writes which parameters: largest first, each to the worker that has the least so far."""
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
    """Write one worker's tensors; returns the file's manifest entry."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{rank:05d}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return WrittenShard(path.name, path.stat().st_size, file_sha256(path))


def write_manifest(folder: Path, progress: TrainingProgress, shards: Iterable[WrittenShard]) -> None:
    """Write the manifest, which completes the checkpoint; `shards` are those of all workers."""
    files = {shard.name: {"bytes": shard.bytes, "sha256": shard.sha256} for shard in shards}
    content = {"version": VERSION, "progress": asdict(progress), "files": files}
    write_json(folder / MANIFEST, {**content, "sha256": digest(content)})


def read_progress(folder: Path, verify: bool = False) -> TrainingProgress:
    """The manifest's progress.

    `verify` also reads every shard and compares its content (sha256) with the manifest; without it, sizes are compared.
    Raises CheckpointError with the reason if the folder is not a complete checkpoint that this release can read.
    """
    manifest = read_manifest_of(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        size = expected if manifest["version"] == 1 else expected["bytes"]
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{folder} is not complete: {name} {state}, its manifest says {size}")
        if verify and manifest["version"] > 1 and file_sha256(file) != expected["sha256"]:
            raise DamagedCheckpointError(
                f"{folder} is damaged: {name} does not have the content that its manifest says"
            )
    try:
        return TrainingProgress(**manifest["progress"])
    except TypeError as error:
        raise DamagedCheckpointError(f"{folder}/{MANIFEST} is damaged: {error}") from None


def read_manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest, validated on its own. Raises CheckpointError."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is not complete: it has no {MANIFEST}")
    try:
        manifest = read_json(path)
    except DataError as error:
        raise DamagedCheckpointError(str(error)) from None
    except OSError as error:
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
        raise DamagedCheckpointError(f"{path} is damaged: it does not have the content it was written with")
    return dict(manifest)


class State(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read from disk on access. Raises CheckpointError."""

    def __init__(self, folder: Path) -> None:
        self.progress = read_progress(folder)
        self._where: dict[str, Any] = {}
        for name in read_manifest_of(folder)["files"]:
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
    """The checkpoints of one run in a folder."""

    newest: Path | None
    """The readable checkpoint with the most steps, or None."""
    step: int
    """Its optimizer steps, or 0."""
    superseded: tuple[Path, ...]
    """Other readable checkpoints, none of them with more steps than `newest`."""
    unreadable: tuple[str, ...]
    """Why other folders cannot be read."""
    damaged: tuple[tuple[Path, str], ...] = ()
    """Those of them whose content is not what was written, and why."""
    set_aside: tuple[str, ...] = ()
    """Why folders were set aside earlier."""


def survey(folder: Path, key: str) -> CheckpointSurvey:
    """All checkpoints of the run `key` under all attempts in `folder`, with their contents verified.

    Those of other runs are ignored. Superseded checkpoints are verified too, since those are the ones that get deleted.
    """
    readable: list[tuple[int, Path]] = []
    unreadable: list[str] = []
    damaged: list[tuple[Path, str]] = []
    set_aside: list[str] = []
    for candidate in sorted(folder.glob("*/*/")):
        if not candidate.is_dir():
            continue
        if (candidate / REASON).is_file():
            set_aside.append((candidate / REASON).read_text(encoding="utf-8").strip())
            continue
        try:
            if read_progress(candidate).key == key:
                readable.append((read_progress(candidate, verify=True).step, candidate))
        except CheckpointError as error:
            unreadable.append(str(error))
            if isinstance(error, DamagedCheckpointError):
                damaged.append((candidate, str(error)))
    readable.sort(key=lambda one: -one[0])  # stable sort: the first by name if steps are equal
    step, best = readable[0] if readable else (0, None)
    superseded = tuple(path for _, path in readable[1:])
    return CheckpointSurvey(best, step, superseded, tuple(unreadable), tuple(damaged), tuple(set_aside))


def newest(folder: Path, key: str, say: Callable[[str], None], set_aside: bool = False) -> CheckpointSurvey:
    """The survey of a run, which resumes from `newest`; that is None if the run has never written a checkpoint.

    Unreadable checkpoints that are skipped are reported through `say`. With `set_aside`, which needs that no worker is
    running, damaged ones are renamed to `NAME.damaged`, with their reason in a file. Raises CheckpointError with every
    reason if there are checkpoints but none can be read.
    """
    found = survey(folder, key)
    places = {}
    for path, reason in found.damaged if set_aside else ():
        write_text(path / REASON, f"{reason}\n")
        places[reason] = path.rename(path.with_name(f"{path.name}.damaged"))
    if found.newest is None and (found.unreadable or found.set_aside):
        raise CheckpointError(
            f"no checkpoint of this run can be read: {'; '.join((*found.unreadable, *found.set_aside))}. Nothing was "
            "deleted: run the same command again once one of them can be read, or start over with train.restart=true"
        )
    for reason in found.unreadable:
        kept = f"set aside as {places[reason].name}" if reason in places else "kept but not used"
        say(f"{reason}; it is {kept}. The newest readable checkpoint is at step {found.step}")
    return found


def clean(folder: Path, found: CheckpointSurvey, keep: int = 1) -> None:
    """Remove the verified checkpoints except the newest `keep`.

    Unreadable checkpoints and those of other runs stay. An attempt's folder is removed with its last checkpoint; its
    other contents are Ray's own records.
    """
    for path in found.superseded[keep - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
        if not any(part.is_dir() for part in path.parent.iterdir()):
            shutil.rmtree(path.parent, ignore_errors=True)


def load_weights(stage_parameters: Sequence[tuple[str, nn.Parameter]], state: Mapping[str, Tensor], kind: str) -> None:
    """Copy `kind` (`param` or `ema`) into parameters. Raises CheckpointError for missing names or wrong shapes."""
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
