"""`kosmosg trace` names the very records that training consumed, however it was spread over workers or interrupted."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray import cloudpickle

from jobs import align, instruct, pretrain
from jobs.experiment import Experiment, load
from kosmosg.errors import ConfigError, DataError
from kosmosg_platform.config import to_yaml
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.storage import write_json, write_text
from kosmosg_platform.tracking import Run
from kosmosg_platform.training.consumed import TracedRun, open_run
from kosmosg_platform.training.dataloader import micro_batches
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.sampler import SampleIndex
from kosmosg_platform.training.trainer import fit
from tests.made_records import records, write_dataset

# Workers cannot import test files: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

STAGES = {"pretrain": pretrain, "align": align, "instruct": instruct}
COUNTS = {"composition": 23, "edit": 9, "captions": 11, "text": 17, "interleaved": 5}
GLOBAL = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of every kind, in several shards."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in COUNTS.items():
        kind = "caption" if name == "captions" else name
        write_dataset(folder / name, kind, records(kind, count), shards=3)
    return folder


def settled(stage: str, output: Path, data: Path, *settings: str) -> Experiment:
    given = [f"output={output}", f"data.folder={data}", "parent=new", f"train.global_batch={GLOBAL}", *settings]
    return load(stage, "tiny", given)


def ids_of(record: Mapping[str, Any]) -> list[str]:
    return [one["id"] for one in record["documents"]] if "documents" in record else [record["id"]]


class KeepIds:
    """A collate that writes down the ids it is given, by worker: one line for each micro-batch."""

    def __init__(self, collate: Any, folder: Path) -> None:
        self.collate, self.folder = collate, folder

    def __call__(self, samples: Sequence[tuple[SampleIndex, Mapping[str, Any]]]) -> Any:
        rank = torch.distributed.get_rank()
        with (self.folder / f"rank-{rank}.jsonl").open("a") as file:
            file.write(json.dumps([id for _, record in samples for id in ids_of(record)]) + "\n")
        return self.collate(samples)


class KeptRecipe(pretrain.PretrainRecipe):
    """Stage 1 as it is, but for the ids that it writes down."""

    def build_collate(self) -> Any:
        return KeepIds(super().build_collate(), self.experiment.output)


def written_down(output: Path, workers: int, steps: int) -> list[list[str]]:
    """The ids of every step, of all workers in their order."""
    lines = [
        [json.loads(line) for line in (output / f"rank-{rank}.jsonl").read_text().splitlines()]
        for rank in range(workers)
    ]
    assert all(len(of) == steps for of in lines)
    return [[id for of in lines for id in of[step]] for step in range(steps)]


def traced(run: TracedRun, step: int) -> list[str]:
    return [record.id for record in run.consumed(step)]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_ids_of_a_real_run_are_told_by_run_key_checkpoint_and_command(
    tmp_path: Path, data: Path, workers: int
) -> None:
    steps, together = 6, 3
    shared = [f"scale.workers={workers}", f"train.steps={steps}", "data.max_seq_len=64"]
    experiment = settled(
        "pretrain",
        tmp_path,
        data,
        *shared,
        f"templates.pretrain.documents_per_row={together}",
        "scale.cpus_per_worker=1",
    )
    result = fit(KeptRecipe.of(experiment), experiment)
    consumed = written_down(tmp_path, workers, steps)
    run = open_run(str(result.folder), tmp_path)
    assert run.verified
    assert [traced(run, step) for step in range(steps)] == consumed
    by_key = open_run(result.folder.name[:8], tmp_path)
    assert by_key.consumed(1) == run.consumed(1)
    *_, checkpoint = sorted(path.parent for path in result.folder.glob("checkpoints/*/*/manifest.json"))
    last = open_run(str(checkpoint), tmp_path).last_step
    assert last == steps - 1
    if workers == 2:
        command = [Path(sys.executable).parent / "kosmosg", "trace", "--run", checkpoint, "--json"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        told = [json.loads(line) for line in shown.stdout.splitlines()]
        assert [line["id"] for line in told] == consumed[-1]
        assert {line["step"] for line in told} == {last}
        assert {line["position"] for line in told} == set(range(last * GLOBAL, (last + 1) * GLOBAL))


def as_run(experiment: Experiment, recipe: Any, key: str = "0123456789ab") -> Path:
    """The folder of a run as `fit` leaves it before its first step."""
    folder = experiment.output / recipe.stage / key
    write_text(folder / "experiment.yaml", to_yaml(experiment))
    write_json(folder / "run.json", {"uri": "", "id": "", "data": recipe.fingerprint()["data"]})
    return folder


@settings(max_examples=12)
@given(
    stage=st.sampled_from(sorted(STAGES)),
    spread=st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (4, 1)]),
    step=st.integers(0, 40),
    seed=st.integers(0, 3),
    together=st.sampled_from([1, 2]),
)
def test_what_the_loader_reads_at_any_number_of_workers_is_what_is_told(
    stage: str,
    spread: tuple[int, int],
    step: int,
    seed: int,
    together: int,
    data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Every stage with its own mixture, at steps of several epochs, resumed at that step."""
    workers, micro = spread
    given_ = ["train.steps=50", f"train.seed={seed}"]
    if stage == "pretrain":
        given_.append(f"templates.pretrain.documents_per_row={together}")
    experiment = settled(stage, tmp_path_factory.mktemp("run"), data, *given_)
    recipe = STAGES[stage].recipe(experiment)
    seen: list[str] = []

    class Listening(type(recipe)):  # type: ignore[misc]
        def build_collate(self) -> Any:
            return lambda samples: seen.extend(id for _, record in samples for id in ids_of(record))

    job = TrainRun(Listening(experiment, recipe.initial, recipe.mixture), experiment, "key", Run("", ""))
    for rank in range(workers):
        batches = micro_batches(job, step, micro, rank, workers)
        for _ in range(GLOBAL // workers // micro):
            next(batches)
    run = open_run(str(as_run(experiment, recipe)), experiment.output)
    found = run.consumed(step)
    assert [record.id for record in found] == seen
    assert sorted({record.position for record in found}) == list(range(step * GLOBAL, (step + 1) * GLOBAL))
    for record in found:
        assert RecordDataset(record.dataset)[record.index]["id"] == record.id


def test_data_that_have_changed_are_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "captions", "caption", records("caption", 8)).parent
    experiment = settled("align", tmp_path / "out", data)
    folder = as_run(experiment, align.recipe(experiment))
    assert len(open_run(str(folder), tmp_path).consumed(0)) == GLOBAL
    write_dataset(tmp_path / "captions", "caption", records("caption", 8, seed=1))
    with pytest.raises(DataError, match=r"data of .* have changed since it was trained \(caption\)"):
        open_run(str(folder), tmp_path)


def test_a_run_that_does_not_tell_its_data_says_so(tmp_path: Path, data: Path) -> None:
    """Runs of earlier releases have no data in run.json, and finished ones have them elsewhere."""
    experiment = settled("align", tmp_path, data)
    recipe = align.recipe(experiment)
    folder = as_run(experiment, recipe)
    write_json(folder / "run.json", {"uri": "", "id": ""})
    assert not open_run(str(folder), tmp_path).verified
    write_json(folder / "finished.json", {"fingerprint": recipe.fingerprint()})
    assert open_run(str(folder), tmp_path).verified


def test_a_run_is_found_by_its_key_alone_where_it_is_the_only_one(tmp_path: Path, data: Path) -> None:
    experiment = settled("align", tmp_path, data)
    recipe = align.recipe(experiment)
    one = as_run(experiment, recipe, "0123456789ab")
    as_run(experiment, recipe, "0123ffffffff")
    assert open_run("01234", tmp_path).folder == one.resolve()
    with pytest.raises(ConfigError, match="several runs"):
        open_run("0123", tmp_path)
    for name in ("ffff", "../..", "*", "no-key"):
        with pytest.raises(ConfigError, match=r"--run: "):
            open_run(name, tmp_path)
    run = open_run(str(one), tmp_path)
    for step in (-1, run.train.steps):
        with pytest.raises(ConfigError, match="steps 0 to 5"):
            run.consumed(step)
