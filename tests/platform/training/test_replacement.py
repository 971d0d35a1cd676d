"""A sample that cannot be used is replaced by the next of its kind, the same whatever happens to the run."""

import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from PIL import Image
from ray import cloudpickle
from torch import nn

from kosmosg.data.templates.instruct import record_image
from kosmosg.errors import ConfigError, DataError
from kosmosg.stages import StageOutput
from kosmosg_platform.config import merge, to_yaml, validate
from kosmosg_platform.console import read_metrics
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.tracking import Run
from kosmosg_platform.training.consumed import open_run
from kosmosg_platform.training.dataloader import micro_batches
from kosmosg_platform.training.recipe import TrainingExperiment, TrainRun
from kosmosg_platform.training.replacement import IN_A_ROW, ReplacedSamples, Replacement, usable
from kosmosg_platform.training.sampler import MixtureSampler, SampleIndex
from kosmosg_platform.training.trainer import fit
from tests.made_records import records, write_dataset

# Workers cannot import test files: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS, GLOBAL, COUNT = 12, 4, 17
BAD = {3: b"not an image", 4: b"", 11: None}  # None: the first bytes of a real one


def damaged(folder: Path, bad: Mapping[int, bytes | None], count: int = COUNT) -> Path:
    """A dataset of captions in which some images cannot be decoded."""
    rows = records("caption", count)
    for index, image in bad.items():
        rows[index]["image"] = rows[index]["image"][:40] if image is None else image
    return write_dataset(folder, "caption", rows, shards=3)


class Linear(nn.Module):
    """Learns from the numbers of the records that it is given, so another record is another loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> StageOutput:
        loss = ((self.net(batch["number"][:, None] / COUNT) - batch["number"][:, None] % 3) ** 2).mean()
        return StageOutput(loss, {"loss": loss.detach(), "number": batch["number"].mean()})

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())


@dataclass(frozen=True)
class CaptionRecipe:
    folder: Path
    killed_at: int | None = None  # the seed of a sample at which the process dies, once
    stage: str = "instruct"

    def fingerprint(self) -> Mapping[str, Any]:
        return {"data": {"t2i": {"sha256": RecordDataset(self.folder).manifest["sha256"], "weight": 1.0}}}

    def lineage(self) -> Mapping[str, str]:
        return {"parent.export": "none"}

    def tracked_datasets(self) -> Sequence[Mapping[str, str]]:
        return []

    def build_stage(self) -> Linear:
        return Linear()

    def datasets(self) -> Mapping[str, RecordDataset]:
        return {"t2i": RecordDataset(self.folder)}

    def weights(self) -> Mapping[str, float]:
        return {"t2i": 1.0}

    def build_collate(self) -> Any:
        return Numbers(self.killed_at, self.folder / "killed")

    def sample_images(self, stage: Any) -> Sequence[Any]:
        return ()

    def save(self, stage: Linear, folder: Path, figures: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(stage.state_dict(), folder / "weights.pt")


class Numbers:
    """A collate that decodes the images and gives the numbers of the records and the seeds of their samples."""

    def __init__(self, killed_at: int | None, mark: Path) -> None:
        self.killed_at, self.mark = killed_at, mark

    def __call__(self, samples: Sequence[tuple[SampleIndex, Mapping[str, Any]]]) -> dict[str, torch.Tensor]:
        numbers = []
        for key, record in samples:
            numbers.append(float(record["id"].rsplit("/", 1)[1]))
            if key.seed == self.killed_at and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            record_image(record["image"], "image")
        return {"number": torch.tensor(numbers), "seed": torch.tensor([key.seed for key, _ in samples])}


def experiment(output: Path, **settings: Any) -> TrainingExperiment:
    basis = {
        "output": output,
        "train": {"steps": STEPS, "global_batch": GLOBAL, "checkpoint_every": 5, "log_every": 2},
        "scale": {"workers": 1, "max_failures": 0},
    }
    return validate(TrainingExperiment, merge(basis, settings))


def job(recipe: CaptionRecipe, output: Path, **settings: Any) -> TrainRun:
    return TrainRun(recipe, experiment(output, **settings), "key", Run("", ""))


def numbers(run: TrainRun, start: int, micro: int, world: int) -> tuple[list[list[float]], set[Any]]:
    """The records of each step, over all ranks in their order, and what was replaced."""
    steps: list[list[float]] = [[] for _ in range(start, STEPS)]
    replaced = set()
    for rank in range(world):
        per_step = GLOBAL // world // micro
        for n, loaded in enumerate(micro_batches(run, start, micro, rank, world)):
            steps[n // per_step] += loaded.batch["number"].tolist()
            replaced |= {(start + n // per_step, each) for each in loaded.replaced}
    return steps, replaced


@pytest.mark.parametrize("processes", [0, 2])
def test_the_next_of_its_kind_stands_in_whatever_the_split_and_the_start(tmp_path: Path, processes: int) -> None:
    recipe = CaptionRecipe(damaged(tmp_path / "bad", BAD))
    run = job(recipe, tmp_path, scale={"dataloader_workers": processes})
    whole = job(CaptionRecipe(damaged(tmp_path / "good", {})), tmp_path)
    found, replaced = numbers(run, 0, 4, 1)
    intact, none = numbers(whole, 0, 4, 1)
    assert none == set()
    stand_in = {3: 5, 4: 5, 11: 12}
    assert found == [[stand_in.get(int(number), number) for number in step] for step in intact]
    wanted = {number for step in intact for number in step} & set(stand_in)
    assert {(each.index, each.by) for _, each in replaced} == {(index, stand_in[index]) for index in map(int, wanted)}
    assert all((each.id, each.by_id) == (f"caption/{each.index}", f"caption/{each.by}") for _, each in replaced)
    for start, micro, world in ((0, 1, 4), (0, 2, 1), (7, 1, 2), (7, 2, 2)):
        again, same = numbers(run, start, micro, world)
        assert again == found[start:]
        assert same == {(step, each) for step, each in replaced if step >= start}


def test_many_in_a_row_are_no_accident(tmp_path: Path) -> None:
    every = dict.fromkeys(range(IN_A_ROW + 5), b"nothing")
    some = job(CaptionRecipe(damaged(tmp_path / "some", every, IN_A_ROW + 6)), tmp_path)
    with pytest.raises(DataError, match=rf"{IN_A_ROW} records of t2i in a row cannot be used, from 'caption/\d+' on"):
        list(micro_batches(some, 0, 4, 0, 1))
    few = job(CaptionRecipe(damaged(tmp_path / "all", dict.fromkeys(range(3), b"nothing"), 3)), tmp_path)
    with pytest.raises(DataError, match="3 records of t2i in a row cannot be used"):
        list(micro_batches(few, 0, 4, 0, 1))


@pytest.mark.parametrize("processes", [0, 1])
def test_a_mistake_in_the_settings_replaces_nothing_and_stays_one_sentence(tmp_path: Path, processes: int) -> None:
    @dataclass(frozen=True)
    class Mistaken(CaptionRecipe):
        def build_collate(self) -> Any:
            def collate(samples: object) -> None:
                raise ConfigError("data.max_seq_len: too short")

            return collate

    mistaken = job(Mistaken(damaged(tmp_path / "a", {})), tmp_path, scale={"dataloader_workers": processes})
    with pytest.raises(ConfigError) as error:
        list(micro_batches(mistaken, 0, 4, 0, 1))
    assert str(error.value) == "data.max_seq_len: too short"


@pytest.mark.parametrize("processes", [0, 2])
def test_a_damaged_shard_is_refused_and_not_replaced(tmp_path: Path, processes: int) -> None:
    folder = damaged(tmp_path / "a", BAD)
    shard = folder / "data/part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100] + bytes(100))
    run = job(CaptionRecipe(folder), tmp_path, scale={"dataloader_workers": processes})
    with pytest.raises(DataError, match=r"^shard .*part-00001.parquet has the sha256 \w{64}, its manifest says \w{64}"):
        list(micro_batches(run, 0, 4, 0, 1))


@pytest.mark.parametrize("on_main", [False, True])
def test_a_killed_data_loader_is_told_with_the_samples_it_was_at(tmp_path: Path, on_main: bool) -> None:
    """Ray Train runs the loop on a thread of its own, where torch has no signal handler."""
    recipe = CaptionRecipe(damaged(tmp_path / "a", {}))
    whole = [loaded.batch for loaded in micro_batches(job(recipe, tmp_path), 0, 2, 1, 2)]
    at = whole[9]
    killed = replace(recipe, killed_at=int(at["seed"][1]))
    run = job(killed, tmp_path, scale={"dataloader_workers": 2})
    run.folder.mkdir(parents=True)
    failures: list[DataError] = []
    seen: list[float] = []

    def train() -> None:
        try:
            for loaded in micro_batches(run, 0, 2, 1, 2):
                seen.extend(loaded.batch["number"].tolist())
        except DataError as error:
            failures.append(error)

    if on_main:
        train()
    else:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(60)
        signal.signal(signal.SIGCHLD, before)
    (failure,) = map(str, failures)
    names = ", ".join(f"t2i 'caption/{int(number)}'" for number in at["number"])
    assert f"at the samples {names} of worker 1 was killed or crashed" in failure
    assert "\n" not in failure
    assert failure in (run.folder / "notices.log").read_text()
    assert seen == [number for batch in whole for number in batch["number"].tolist()][: len(seen)]
    # As long as torch knows the process that was killed, its handler of SIGCHLD fails whatever runs next.
    failures.clear()
    gc.collect()


def left(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "replaced.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_replaces_counts_logs_once_resumes_exactly_and_can_be_traced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    folder = damaged(tmp_path / "captions", BAD)
    steps, replaced = numbers(job(CaptionRecipe(folder), tmp_path), 0, 4, 1)
    expected = sorted((step, each.index, each.by, each.seed) for step, each in replaced)
    order = MixtureSampler({"t2i": COUNT}, {"t2i": 1.0}, 0, GLOBAL)
    killed = replace(CaptionRecipe(folder), killed_at=order.step(7)[1].seed)  # two steps after a checkpoint
    result = fit(killed, experiment(tmp_path, scale={"workers": 2, "max_failures": 1}, train={"log_every": 1}))
    said = capfd.readouterr().err
    assert (folder / "killed").exists()
    assert sorted((line["step"], line["index"], line["by"], line["seed"]) for line in left(result.folder)) == expected
    assert len(expected) > len(BAD), "no record was replaced twice, so logging once is not tested"
    for index in BAD:
        assert said.count(f"instruct: record 'caption/{index}' of t2i cannot be used and is replaced by") == 1
    lines = read_metrics(result.folder / "metrics.jsonl")
    assert [line["number"] for line in lines] == pytest.approx([sum(step) / GLOBAL for step in steps])
    assert [line["data/replaced"] for line in lines] == [sum(at <= n for at, *_ in expected) for n in range(STEPS)]
    run = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(result.run_id)
    assert run.data.metrics["data/replaced"] == len(expected)

    settings = yaml.safe_load(to_yaml(experiment(tmp_path))) | {
        "data": {"captions": str(folder), "weights": {"t2i": 1.0}}
    }
    (result.folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    traced = open_run(str(result.folder), tmp_path)
    for step in range(STEPS):
        consumed = traced.consumed(step)
        assert [float(record.index) for record in consumed] == steps[step]
        stood_in = [(record.index, record.instead_of) for record in consumed if record.instead_of is not None]
        assert sorted(stood_in) == sorted((by, f"caption/{index}") for at, index, by, _ in expected if at == step)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """This process is the only rank."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def replacements(count: int) -> list[Replacement]:
    return [Replacement("t2i", index, f"id {index}", 0, "id 0", index, "it is torn") for index in range(count)]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("share", "step", "allowed"), [(0.0, 99, 0), (0.001, 0, 10), (0.001, 9_999, 40), (0.5, 99, 200), (1.0, 0, 10)]
)
def test_too_many_end_the_run(tmp_path: Path, share: float, step: int, allowed: int) -> None:
    """A share of the samples so far, and ten in any case; a share of 0 allows none."""
    run = job(CaptionRecipe(tmp_path), tmp_path / str(share), train={"max_replaced": share})
    run.folder.mkdir(parents=True)
    few = ReplacedSamples(run, 0, torch.device("cpu"))
    few.note(step, replacements(allowed))
    assert few.settle(step) == allowed
    assert ReplacedSamples(run, step + 1, torch.device("cpu")).count == allowed
    assert ReplacedSamples(run, step, torch.device("cpu")).count == 0  # the step is taken again
    many = ReplacedSamples(run, 0, torch.device("cpu"))
    many.note(step, replacements(allowed + 1))
    told = rf"^{allowed + 1} of {(step + 1) * GLOBAL} samples .* 'id {allowed}' of t2i: it is torn"
    with pytest.raises(DataError, match=told):
        many.settle(step)
    assert len(left(run.folder)) == allowed + 1


def test_bad_samples_are_left_out_of_sample_sheets(tmp_path: Path) -> None:
    source = RecordDataset(damaged(tmp_path / "a", BAD))

    def decode(sample: SampleIndex, record: Mapping[str, Any]) -> Image.Image:
        return record_image(record["image"], "image")

    image, (sample, record), found = usable(SampleIndex("t2i", 3, 0, 7), source, decode)
    assert (image.size, sample.index, record["id"]) == ((record["width"], record["height"]), 5, "caption/5")
    assert found is not None
    assert found.index == 3
    with pytest.raises(ConfigError, match="max_replaced"):
        experiment(tmp_path, train={"max_replaced": 2})
