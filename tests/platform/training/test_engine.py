"""The engine's state is the same whatever ZeRO stage holds it: real DeepSpeed in one process."""

import gc
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.stages import StageOutput
from kosmosg_platform.training.checkpoints import State, TrainingProgress, load_weights, write_manifest, write_shard
from kosmosg_platform.training.engine import Engine
from kosmosg_platform.training.engine_config import EngineConfig
from kosmosg_platform.training.lr_schedule import TrainConfig, learning_rate

STEPS, CUT = 7, 3
TRAIN = TrainConfig(steps=STEPS, global_batch=8, lr=0.02, warmup=2, weight_decay=0.1, lr_multipliers={"words": 0.3})
# bf16 engines are compared with bf16 engines; they agree to its rounding, not to fp32's.
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-3}


class TinyStage(nn.Module):
    """Odd sizes, a frozen part, and a parameter of the stage itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = nn.Embedding(11, 9)
        self.frozen = nn.Linear(9, 9).requires_grad_(False)
        self.net = nn.Sequential(nn.Linear(9, 13), nn.GELU(), nn.Linear(13, 3))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, batch: dict[str, Tensor]) -> StageOutput:
        answers = self.net(self.frozen(self.words(batch["ids"]).mean(1))) * self.scale
        loss = ((answers.float() - batch["target"].float()) ** 2).mean()
        return StageOutput(loss, {"loss": loss.detach()})


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch.distributed with this process as its only member."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}.items():
            patch.setenv(name, value)
        store: Path = tmp_path_factory.mktemp("store") / "file"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


def start(zero: int, precision: str, passes: int = 1, state: Mapping[str, Tensor] | None = None) -> Engine:
    stage = TinyStage()
    parameters = [(name, p) for name, p in stage.named_parameters() if p.requires_grad]
    if state is not None:
        load_weights(parameters, state, "param")
    config = EngineConfig.model_validate({"zero_stage": zero, "precision": precision})
    engine = Engine(stage, parameters, TRAIN, config, 8 // passes, passes, 1)
    if state is not None:
        engine.load_moments(state, CUT)
    return engine


def learn(engine: Engine, first: int, last: int, passes: int = 1) -> list[float]:
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        batch = {
            "ids": torch.randint(0, 11, (8, 4), generator=generator),
            "target": torch.randn(8, 3, generator=generator),
        }
        total = 0.0
        for part in range(passes):
            rows = slice(part * 8 // passes, (part + 1) * 8 // passes)
            out = engine({name: value[rows] for name, value in batch.items()})
            engine.backward(out.loss)
            engine.step(learning_rate(TRAIN, step))
            total += float(out.loss.detach()) / passes
        losses.append(total)
    return losses


def state_of(engine: Engine) -> dict[str, Tensor]:
    return dict(engine.full_state({name for name, _ in engine.parameters}))


def reference() -> tuple[list[float], dict[str, Tensor]]:
    """Plain PyTorch: the same steps without any engine."""
    stage = TinyStage()
    parameters = [(name, p) for name, p in stage.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": [p]} for _, p in parameters], betas=TRAIN.betas, eps=TRAIN.eps, weight_decay=TRAIN.weight_decay
    )
    losses = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        ids, target = torch.randint(0, 11, (8, 4), generator=generator), torch.randn(8, 3, generator=generator)
        loss = stage({"ids": ids, "target": target}).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for _, p in parameters], TRAIN.max_grad_norm)
        for (name, _), group in zip(parameters, optimizer.param_groups, strict=True):
            group["lr"] = learning_rate(TRAIN, step) * (0.3 if name.startswith("words") else 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {f"param.{name}": p.detach() for name, p in parameters}


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("passes", [1, 4])
def test_every_stage_learns_what_plain_pytorch_learns(zero: int, passes: int) -> None:
    losses, weights = reference()
    engine = start(zero, "fp32", passes)
    assert learn(engine, 0, STEPS, passes) == pytest.approx(losses, abs=1e-5)
    state = state_of(engine)
    for name, weight in weights.items():
        torch.testing.assert_close(state[name], weight, atol=1e-5, rtol=1e-5)
    assert engine.optimizer_steps() == STEPS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_moves_from_any_stage_to_any_other(precision: str) -> None:
    whole = learn(start(1, precision), 0, STEPS)
    for before, after in pairwise([0, 1, 2, 3, 0, 2, 1, 3]):
        first = start(before, precision)
        head = learn(first, 0, CUT)
        second = start(after, precision, state=state_of(first))
        for name, tensor in state_of(second).items():
            torch.testing.assert_close(tensor, state_of(first)[name], atol=0, rtol=0, msg=f"{name}, {before}->{after}")
        tail = learn(second, CUT, STEPS)
        assert head + tail == pytest.approx(whole, abs=TOLERANCE[precision]), f"ZeRO {before} to {after}"
        assert second.optimizer_steps() == STEPS


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_bf16_with_several_passes_keeps_its_state(zero: int) -> None:
    whole = learn(start(zero, "bf16", 2), 0, STEPS, 2)
    first = start(zero, "bf16", 2)
    head = learn(first, 0, CUT, 2)
    tail = learn(start(zero, "bf16", 2, state_of(first)), CUT, STEPS, 2)
    assert head + tail == pytest.approx(whole, abs=TOLERANCE["bf16"])


def allow_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes in fp16, though too slowly for DeepSpeed and us to allow it."""
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)
    monkeypatch.setattr("kosmosg_platform.training.engine.check", lambda config, on_gpu: None)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_checkpoint_continues_exactly(
    zero: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_fp16(monkeypatch)
    whole = start(zero, precision)
    losses = learn(whole, 0, STEPS)
    first = start(zero, precision)
    learn(first, 0, CUT)
    progress = TrainingProgress("key", CUT, first.optimizer_steps(), first.loss_scale_state())
    write_manifest(tmp_path, progress, [write_shard(tmp_path, 0, state_of(first))])
    read = State(tmp_path)
    assert read.progress.loss_scale.get("cur_scale") == (2.0**16 if precision == "fp16" else None)
    second = start(zero, precision, state=read)
    second.load_loss_scale_state(read.progress.loss_scale)
    assert second.optimizer_steps() == CUT
    assert learn(second, CUT, STEPS) == losses[CUT:]
    assert second.loss_scale_state() == whole.loss_scale_state()
    for name, tensor in state_of(whole).items():
        assert torch.equal(state_of(second)[name], tensor), name


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("passes", [1, 2])
def test_an_update_that_is_not_finite_is_skipped_whole(
    zero: int, precision: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_fp16(monkeypatch)
    engine = start(zero, precision, passes)
    learn(engine, 0, CUT, passes)
    before, steps = state_of(engine), engine.optimizer_steps()
    batch = {"ids": torch.zeros(8 // passes, 4, dtype=torch.long), "target": torch.ones(8 // passes, 3)}
    for _ in range(20):  # more often than fp16 can halve its loss scale
        for index in range(passes):
            out = engine(batch)
            engine.backward(out.loss * (float("nan") if index == 0 else 1.0))
            applied = engine.step(0.1)
            assert applied == (index < passes - 1)
    assert not engine.lowers_loss_scale
    assert engine.optimizer_steps() == steps
    for name, tensor in state_of(engine).items():
        assert torch.equal(tensor, before[name]), name
    for _ in range(passes):
        out = engine(batch)
        engine.backward(out.loss)
        assert engine.step(0.1)
    assert engine.optimizer_steps() == steps + 1
    assert 0 < engine.gradient_norm() < float("inf")


def test_masters_are_fp32_although_the_forward_pass_is_bf16() -> None:
    engine = start(2, "bf16")
    learn(engine, 0, 2)
    weight = state_of(engine)["param.net.0.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.bfloat16().float())
    assert next(engine.module.parameters()).dtype == torch.bfloat16


def test_a_state_of_another_stage_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"has nothing for scale"):
        start(1, "fp32", state={"param.of_another_stage": torch.zeros(3)})


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_released_engine_holds_no_memory(zero: int, precision: str) -> None:
    def held() -> int:
        gc.collect()
        tensors = [one for one in gc.get_objects() if isinstance(one, Tensor)]
        return sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in tensors}.values())

    learn(start(0, precision), 0, 1)
    before = held()
    engine = start(zero, precision)
    learn(engine, 0, 2)
    weights = sum(parameter.numel() for _, parameter in TinyStage().named_parameters())
    assert held() > before + 3 * 2 * weights, "nothing is measured"
    engine.release()
    del engine
    assert held() <= before + 4 * weights / 2, "more is left than odds and ends"


def test_offloading_needs_something_to_offload() -> None:
    with pytest.raises(ConfigError, match=r"engine.offload_optimizer: needs engine.zero_stage 1, 2 or 3, not 0"):
        Engine(TinyStage(), [], TRAIN, EngineConfig(zero_stage=0, offload_optimizer=True), 8, 1, 1)
