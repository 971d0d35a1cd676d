"""Real workers, real DeepSpeed: how a run is spread or interrupted never changes what it learns."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from PIL import Image
from ray import cloudpickle
from torch import Tensor, nn

from kosmosg.errors import CheckpointError, ConfigError, DataError
from kosmosg.stages import StageOutput
from kosmosg_platform.config import merge, validate
from kosmosg_platform.console import read_metrics
from kosmosg_platform.training import trainer as launch
from kosmosg_platform.training.recipe import TrainingExperiment
from kosmosg_platform.training.sampler import SampleIndex

# Workers cannot import test files: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS = 8
ALIVE: WeakSet[nn.Module] = WeakSet()  # the stages that this process holds


class ToyStage(nn.Module):
    """A frozen and a trained part; sizes that no number of workers divides; a loss that is a mean over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(13, 10)
        self.frozen = nn.Linear(10, 10).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(10, 17), nn.GELU(), nn.Linear(17, 3))
        self.scale = nn.Parameter(torch.ones(3))
        ALIVE.add(self)

    def forward(self, batch: Mapping[str, Tensor]) -> StageOutput:
        ids, kept = batch["input_ids"], batch["input_ids"] > 0
        answers = self.net(self.frozen(self.words(ids))).float() * self.scale.float()
        target = torch.stack([ids % 2, ids % 3, ids % 5], dim=-1).float()
        errors = ((answers - target) ** 2).mean(-1) * kept
        loss = errors.sum() / kept.sum().clamp(min=1)
        return StageOutput(loss, {"loss": loss.detach(), "worst": errors.max().detach()})

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]


class Words:
    """Records of a few words each; after `fuse` reads the first process to come there dies, or raises, once."""

    def __init__(self, fuse: int | None, how: str, mark: Path) -> None:
        self.fuse, self.how, self.mark, self.reads = fuse, how, mark, 0

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        if self.fuse is not None and self.reads > self.fuse and self._first():
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError(f"record {index} is broken")
        return {"words": [1 + (index * k) % 12 for k in range(1, 2 + index % 4)]}

    def _first(self) -> bool:
        try:
            self.mark.open("x").close()
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class ToyRecipe:
    mark: Path
    fuse: int | None = None
    how: str = "kill"
    stage: str = "toy"

    def fingerprint(self) -> Mapping[str, Any]:
        return {"data": "words", "parent": "none"}

    def lineage(self) -> Mapping[str, str]:
        return {"parent.export": "none"}

    def tracked_datasets(self) -> Sequence[Mapping[str, str]]:
        return [{"name": "a", "digest": "0123", "source": "{}", "profile": "{}", "context": "training"}]

    def build_stage(self) -> ToyStage:
        return ToyStage()

    def datasets(self) -> Mapping[str, Words]:
        return {"a": Words(self.fuse, self.how, self.mark), "b": Words(None, self.how, self.mark)}

    def flops_of_sample(self, stage: ToyStage) -> float:
        return 6e6

    def weights(self) -> Mapping[str, float]:
        return {"a": 2, "b": 1}

    def build_collate(self) -> Any:
        return collate

    def sample_images(self, stage: ToyStage) -> Sequence[tuple[str, Image.Image]]:
        with (self.mark.parent / "alive.txt").open("a") as file:
            file.write(f"{len(ALIVE)}\n")
        return [("scale", Image.new("L", (4, 4), int(stage.scale[0].detach() * 100)))]

    def save(self, stage: ToyStage, folder: Path, figures: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(stage.state_dict(), folder / "weights.pt")
        (folder / "figures.txt").write_text(str(dict(figures)))


def collate(samples: Sequence[tuple[SampleIndex, Mapping[str, Any]]]) -> dict[str, Tensor]:
    ids = torch.zeros(len(samples), 4, dtype=torch.long)
    for row, (_, record) in enumerate(samples):
        ids[row, : len(record["words"])] = torch.tensor(record["words"])
    real = (ids > 0).sum().float()
    return {"input_ids": ids, "weight": real, "tokens": real}


def experiment(output: Path, **settings: Any) -> TrainingExperiment:
    basis = {
        "output": output,
        "train": {"steps": STEPS, "global_batch": 8, "lr": 0.01, "warmup": 2, "checkpoint_every": 3, "ema": 0.9},
        "scale": {"workers": 2, "max_failures": 0},
    }
    return validate(TrainingExperiment, merge(basis, settings))


def losses(result: launch.FitResult) -> list[float]:
    lines = read_metrics(result.folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS))
    return [line["loss"] for line in lines]


def weights_of(result: launch.FitResult) -> dict[str, Tensor]:
    return torch.load(result.export / "weights.pt", weights_only=True)


@pytest.fixture(scope="module")
def plain_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> launch.FitResult:
    """Two workers, ZeRO-1, never interrupted. `output` is relative, as users give it: workers live elsewhere."""
    folder = tmp_path_factory.mktemp("plain")
    relative = Path(os.path.relpath(folder))
    settings = experiment(relative, train={"sample_every": 4}, scale={"device_tflops": 0.002})
    return launch.fit(ToyRecipe(folder / "mark"), settings)


def test_rates_are_logged_over_all_workers_and_the_worst_one_is_named(plain_run: launch.FitResult) -> None:
    for line in read_metrics(plain_run.folder / "metrics.jsonl"):
        # Two workers of 2 GFLOP/s each, and 6 MFLOP a sample.
        assert line["mfu"] == pytest.approx(6e6 * line["samples_per_second"] / 2 / 2e9)
        # A sample has one to four words, and eight of them share a step.
        assert 1 < line["tokens_per_second"] / line["samples_per_second"] < 4
        assert 0 <= line["data_wait"] < 1
        assert line["memory_gb"] > 0.1
        assert {line["memory_rank"], line["data_wait_rank"]} <= {0, 1}


def test_a_run_leaves_everything(plain_run: launch.FitResult) -> None:
    import mlflow

    api = mlflow.MlflowClient(f"sqlite:///{plain_run.folder.parents[1]}/mlflow.db")
    run = api.get_run(plain_run.run_id)
    assert run.info.status == "FINISHED"
    assert api.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.params["train.lr"] == "0.01"
    assert run.data.metrics["loss"] == pytest.approx(losses(plain_run)[-1])
    assert {"stage", "config.sha256", "data.manifest.sha256", "world_size", "git.sha"} <= set(run.data.tags)
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.git.commit"} <= set(run.data.tags)
    assert "`" in run.data.tags["mlflow.note.content"]  # the command
    assert "/" not in run.data.tags["mlflow.source.name"], "the page would show what is behind it"
    assert [one.dataset.digest for one in run.inputs.dataset_inputs] == ["0123"]
    assert len(run.data.params) < 20, "a wall of params"
    assert any(name.startswith("system/") and name.endswith("/cpu_utilization_percentage") for name in run.data.metrics)
    assert sorted(p.name for p in (plain_run.folder / "samples").iterdir()) == [
        "scale-00000000.png",
        "scale-00000004.png",
        "scale-00000008.png",
    ]
    alive = (plain_run.folder.parents[1] / "alive.txt").read_text().split()
    assert alive == ["1", "1", "1"], "the trained stage was still in memory when the exported one was shown"
    assert (plain_run.folder.parent / "export").resolve() == plain_run.export.resolve()
    assert "'steps': 8" in (plain_run.export / "figures.txt").read_text()
    assert losses(plain_run)[-1] < losses(plain_run)[0]


def test_a_finished_run_is_not_trained_again(plain_run: launch.FitResult) -> None:
    output = plain_run.folder.parents[1]
    again = launch.fit(ToyRecipe(output / "mark", fuse=0), experiment(output, scale={"workers": 1}))
    assert again.skipped
    assert again.run_id == plain_run.run_id


@pytest.mark.slow
def test_zero_2_on_other_passes_killed_on_the_way_learns_the_same(plain_run: launch.FitResult, tmp_path: Path) -> None:
    recipe = ToyRecipe(tmp_path / "mark", fuse=10)
    settings = experiment(
        tmp_path, engine={"zero_stage": 2}, train={"micro_batch": 2}, scale={"workers": 2, "max_failures": 1}
    )
    result = launch.fit(recipe, settings)
    assert recipe.mark.exists(), "no worker was killed"
    assert losses(result) == pytest.approx(losses(plain_run), abs=1e-5)
    for name, tensor in weights_of(plain_run).items():
        torch.testing.assert_close(weights_of(result)[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_zero_3_stopped_by_a_mistake_goes_on_with_one_worker_and_zero_0(
    plain_run: launch.FitResult, tmp_path: Path
) -> None:
    recipe = ToyRecipe(tmp_path / "mark", fuse=16, how="raise")
    with pytest.raises(DataError, match="is broken"):
        launch.fit(recipe, experiment(tmp_path, engine={"zero_stage": 3}))
    result = launch.fit(recipe, experiment(tmp_path, engine={"zero_stage": 0}, scale={"workers": 1}))
    assert losses(result) == pytest.approx(losses(plain_run), abs=1e-5)
    for name, tensor in weights_of(plain_run).items():
        torch.testing.assert_close(weights_of(result)[name], tensor, atol=1e-5, rtol=1e-5)
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    history = client.get_metric_history(result.run_id, "loss")
    assert [point.step for point in history] == list(range(STEPS)), "a step is missing or was logged twice"
    assert len(client.search_runs([client.get_run(result.run_id).info.experiment_id])) == 1


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_run_whose_checkpoints_cannot_be_read_starts_over_only_when_told(
    plain_run: launch.FitResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ToyRecipe(tmp_path / "mark", fuse=40, how="raise")
    one: dict[str, Any] = {"scale": {"workers": 1}}
    with pytest.raises(DataError, match="is broken"):
        launch.fit(recipe, experiment(tmp_path, **one))
    folder = next((tmp_path / "toy").iterdir())
    third, sixth = sorted(folder.glob("checkpoints/*/step-*"))
    flip(sixth / "state-00000.safetensors")
    result = launch.fit(recipe, experiment(tmp_path, **one))
    assert losses(result) == pytest.approx(losses(plain_run), abs=1e-5)
    said = capsys.readouterr().err
    assert f"{sixth} is damaged" in said
    assert "resuming from step 3 of 8" in said
    aside = sixth.with_name(f"{sixth.name}.damaged")
    assert f"it is set aside as {aside.name}" in said
    assert "does not have the content" in (aside / "damaged.txt").read_text()
    assert not sixth.exists()
    assert not third.exists()
    left = sorted(path.name[:13] for path in folder.glob("checkpoints/*/step-*") if path != aside)
    assert left == ["step-00000006", "step-00000008"], "not the last two"

    (folder / "finished.json").unlink()
    for path in folder.glob("checkpoints/*/step-*"):
        if path != aside:
            (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run can be read.*train\.restart=true"):
        launch.fit(recipe, experiment(tmp_path, **one))
    assert len(list(folder.glob("checkpoints/*/step-*"))) == 3
    (folder / "notes.txt").write_text("mine")
    again = launch.fit(recipe, experiment(tmp_path, **one, train={"restart": True}))
    assert losses(again) == pytest.approx(losses(plain_run), abs=1e-5)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not aside.exists()


def test_what_does_not_divide_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.global_batch: 8 samples cannot be shared equally by 3 workers"):
        launch.fit(ToyRecipe(tmp_path / "m"), experiment(tmp_path, scale={"workers": 3}))
    with pytest.raises(ConfigError, match=r"train.micro_batch: 3 does not divide the 4 samples"):
        launch.fit(ToyRecipe(tmp_path / "m"), experiment(tmp_path, train={"micro_batch": 3}))
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        launch.fit(ToyRecipe(tmp_path / "m"), experiment(tmp_path, engine={"precision": "fp16"}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_gpu_learns_what_cpus_learn(precision: str, zero: int, plain_run: launch.FitResult, tmp_path: Path) -> None:
    settings = experiment(
        tmp_path,
        scale={"workers": 1, "use_gpu": True},
        engine={"zero_stage": zero, "precision": precision, "loss_scale": 8},
    )
    result = launch.fit(ToyRecipe(tmp_path / "mark"), settings)
    tolerance = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.02}[precision]
    assert losses(result) == pytest.approx(losses(plain_run), abs=tolerance)
