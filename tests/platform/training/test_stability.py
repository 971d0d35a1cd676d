"""Training that breaks down: updates are skipped, then the run goes back, then it ends and keeps what it had saved."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.preemption import PreemptionInfo
from torch import Tensor, nn

from kosmosg.errors import ConfigError
from kosmosg.stages import StageOutput
from kosmosg_platform.config import merge, validate
from kosmosg_platform.console import read_metrics
from kosmosg_platform.training import checkpoints, trainer
from kosmosg_platform.training.lr_schedule import learning_rate
from kosmosg_platform.training.recipe import TrainingExperiment
from kosmosg_platform.training.sampler import MixtureSampler, SampleIndex
from kosmosg_platform.training.skipped_data import SkippedData
from kosmosg_platform.training.stability import Setback, SkippedUpdates, TrainingDivergedError

# Workers cannot import test files: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

STEPS, BATCH, RECORDS = 10, 4, 200
ORDER = MixtureSampler({"numbers": RECORDS}, {"numbers": 1}, 0, BATCH)


class Line(nn.Module):
    """Learns to double a number; the loss of a number that is not finite is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 5), nn.GELU(), nn.Linear(5, 1))

    def forward(self, batch: Mapping[str, Tensor]) -> StageOutput:
        x = batch["x"]
        # Where x is not finite only the loss is: its gradients would be finite, were they not made to follow it.
        error = (self.net(x.nan_to_num(0, 0, 0)) - 2 * x.nan_to_num(0, 0, 0)) ** 2 + (x - x.nan_to_num(0, 0, 0))
        loss = error.mean()
        return StageOutput(loss, {"loss": loss.detach()})

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())


class Numbers:
    """Numbers in [0, 1], and some that are not finite. Reading one may take time, or tell that a node is going."""

    def __init__(self, broken: Mapping[int, float], pause: float, going: int) -> None:
        self.broken, self.pause, self.going = broken, pause, going

    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.pause)
        if index == self.going:
            # As Ray's watcher of nodes tells a worker.
            get_train_context().preemption_context.preemption_info = PreemptionInfo(None, {"node": [0]})
        return {"x": self.broken.get(index, index / RECORDS)}


@dataclass(frozen=True)
class LineRecipe:
    broken: Mapping[int, float]
    pause: float = 0.0
    going: int = -1
    stage: str = "line"

    def fingerprint(self) -> Mapping[str, Any]:
        return {"data": "numbers"}

    def lineage(self) -> Mapping[str, str]:
        return {}

    def tracked_datasets(self) -> Sequence[Mapping[str, str]]:
        return ()

    def build_stage(self) -> Line:
        return Line()

    def datasets(self) -> Mapping[str, Numbers]:
        return {"numbers": Numbers(self.broken, self.pause, self.going)}

    def weights(self) -> Mapping[str, float]:
        return {"numbers": 1}

    def build_collate(self) -> Any:
        return collate

    def sample_images(self, stage: Line) -> Sequence[Any]:
        return ()

    def save(self, stage: Line, folder: Path, figures: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(stage.state_dict(), folder / "weights.pt")


def collate(samples: Sequence[tuple[SampleIndex, Mapping[str, Any]]]) -> dict[str, Tensor]:
    return {"x": torch.tensor([[record["x"]] for _, record in samples])}


def experiment(output: Path, **settings: Any) -> TrainingExperiment:
    basis = {
        "output": output,
        "train": {"steps": STEPS, "global_batch": BATCH, "lr": 0.01, "checkpoint_every": 3},
        "scale": {"workers": 2, "max_failures": 0},
    }
    return validate(TrainingExperiment, merge(basis, settings))


def broken(*data_steps: int, row: int = 0, value: float = math.nan) -> dict[int, float]:
    """One record of each of these steps of the sample order, the one of `row`."""
    return {ORDER.step(step)[row].index: value for step in data_steps}


def expected(data_steps: Sequence[int | None], train: Any, lower: Any = None, since: int = STEPS) -> dict[str, Tensor]:
    """Plain PyTorch over these steps of the sample order; None for a skipped update; `lower` are the settings from step
    `since` on."""
    torch.manual_seed(train.seed)
    stage = Line()
    optimizer = torch.optim.AdamW(stage.parameters(), betas=train.betas, eps=train.eps, weight_decay=train.weight_decay)
    for step, data_step in enumerate(data_steps):
        if data_step is None:
            continue
        x = torch.tensor([[sample.index / RECORDS] for sample in ORDER.step(data_step)])
        optimizer.zero_grad()
        stage({"x": x}).loss.backward()
        nn.utils.clip_grad_norm_(stage.parameters(), train.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(train if step < since else lower, step)
        optimizer.step()
    return stage.state_dict()


def check(result: trainer.FitResult, data_steps: Sequence[int | None], train: Any) -> list[dict[str, Any]]:
    """The run learnt from exactly these data; returns its metrics."""
    weights = torch.load(result.export / "weights.pt", weights_only=True)
    for name, tensor in expected(data_steps, train).items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-5)
    lines = read_metrics(result.folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    return lines


@pytest.mark.slow
def test_a_bad_update_is_left_out_and_after_several_the_run_goes_back_and_leaves_out_their_data(
    ray_cluster: None, tmp_path: Path
) -> None:
    import mlflow

    settings = experiment(tmp_path, engine={"zero_stage": 3}, train={"max_skipped_updates": 2, "max_rollbacks": 1})
    # One update of the first worker, whose loss alone is not finite, then two of the second, and two more behind the
    # next checkpoint, so that the run may go back once more. Step 2 is followed by a checkpoint, which therefore waits.
    bad = broken(2, row=0, value=math.inf) | broken(5, 6, row=BATCH - 1) | broken(9, 10)
    result = trainer.fit(LineRecipe(bad), settings)
    lines = check(result, [0, 1, None, 3, 7, 8, 11, 12, 13, 14], settings.train)
    assert [line["step"] for line in lines if "skipped_updates" in line] == [2]
    windows = SkippedData.read(result.folder).windows
    told = [(one.first, one.stop, one.checkpoint_step, one.failed_step) for one in windows]
    assert told == [(4, 7, 4, 6), (9, 11, 6, 7)]
    run = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(result.run_id)
    assert run.data.metrics["rollbacks"] == 2
    assert run.data.metrics["skipped_updates"] == 1


@pytest.mark.slow
def test_a_run_that_cannot_go_on_ends_with_a_sentence_and_keeps_its_checkpoint(
    ray_cluster: None, tmp_path: Path
) -> None:
    settings = experiment(tmp_path, train={"max_skipped_updates": 2, "max_rollbacks": 1, "checkpoint_every": 1000})
    # The second worker alone is told that a node is going, with the data of step 3: the run is saved at once.
    recipe = LineRecipe(broken(*range(5, 40)), going=ORDER.step(3)[BATCH - 1].index)
    with pytest.raises(
        TrainingDivergedError, match=r"steps 3 to 4 were not finite, also after 1 rollback .* at step 3"
    ):
        trainer.fit(recipe, settings)
    (folder,) = (tmp_path / "line").iterdir()
    found = checkpoints.survey(folder / "checkpoints", folder.name)
    assert found.step == 3
    assert found.newest is not None
    assert not found.unreadable
    state = checkpoints.State(found.newest)
    for name, tensor in expected(range(3), settings.train).items():
        torch.testing.assert_close(state[f"param.{name}"], tensor, atol=1e-5, rtol=1e-5)

    # A lower rate goes on from there, behind the data that were left out.
    again = {"resume_from": str(folder), "lr": 0.002, "ema": 0.9}
    with pytest.raises(ConfigError, match=r"train.resume_from: .* with another train.seed or train.global_batch"):
        trainer.fit(recipe, experiment(tmp_path, train={**again, "seed": 1}))
    with pytest.raises(ConfigError, match=r"is at step 3, train.steps is 3"):
        trainer.fit(recipe, experiment(tmp_path, train={**again, "steps": 3}))
    lower = experiment(tmp_path, train={**again, "ema": None}, scale={"workers": 1})
    result = trainer.fit(LineRecipe({}), lower)
    weights = torch.load(result.export / "weights.pt", weights_only=True)
    for name, tensor in expected([0, 1, 2, *range(7, 14)], settings.train, lower.train, 3).items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-5)
    assert [line["step"] for line in read_metrics(result.folder / "metrics.jsonl")] == list(range(3, STEPS))
    assert result.folder != folder
    assert checkpoints.survey(folder / "checkpoints", folder.name) == found
    assert trainer.fit(LineRecipe({}), lower).skipped, "the same command is the same run"


@pytest.mark.slow
def test_sigterm_saves_and_stops_and_the_same_command_goes_on(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal is a real one, and this process is the driver."""
    settings = experiment(tmp_path, engine={"zero_stage": 2}, train={"checkpoint_every": 1000})

    def terminate() -> None:
        while sum(len(read_metrics(path)) for path in tmp_path.glob("line/*/metrics.jsonl")) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(LineRecipe({}, pause=0.25), settings)
    (folder,) = (tmp_path / "line").iterdir()
    stopped = checkpoints.survey(folder / "checkpoints", folder.name).step
    assert 2 <= stopped < STEPS
    assert len(read_metrics(folder / "metrics.jsonl")) == stopped, "steps were taken that are not saved"
    assert f"line: stopped after step {stopped}, saved after step {stopped}" in capsys.readouterr().err
    result = trainer.fit(LineRecipe({}), settings)
    assert f"line: resuming from step {stopped} of {STEPS}" in capsys.readouterr().err
    check(result, range(STEPS), settings.train)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=5))
def test_every_step_after_rollbacks_has_data_of_its_own(failures: list[tuple[int, int]]) -> None:
    skipped = SkippedData()
    for back, further in failures:
        failed = back + further
        seen = [skipped.data_step(step) for step in range(failed + 1)]
        skipped = skipped.after(back, failed, "NaN")
        now = [skipped.data_step(step) for step in range(60)]
        assert now[:back] == seen[:back], "what the checkpoint has seen stays"
        assert now[back] > seen[-1], "training goes on behind what failed"
        assert all(one < other for one, other in pairwise(now))
        assert not set(now) & set(seen[back:])


def test_skipped_updates_count_in_a_row_and_not_while_fp16_looks_for_its_scale() -> None:
    skipped = SkippedUpdates(3)
    outcomes = [(False, True)] * 9 + [(False, False), (False, False), (True, False), (False, False), (False, False)]
    assert [skipped.add(step, *outcome) for step, outcome in enumerate(outcomes)] == [None] * len(outcomes)
    assert skipped.add(14, False, False) == Setback(14, "loss or gradients of steps 12 to 14 were not finite")
