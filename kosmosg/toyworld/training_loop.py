"""The training loop of the small parts: AdamW, warm-up and decay, an average of the weights, and a resumable state.

The toy world's parts are trained without the platform (no DeepSpeed, no Ray: one process, one core or one GPU), so the
loop is simple. A part is a module and a function `loss(step) -> (loss, metrics)`; its data depend only on the step, so
that an interrupted run resumes exactly.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

Report = Callable[[str], None]
Loss = Callable[[int], tuple[Tensor, dict[str, float]]]
_Called = TypeVar("_Called", bound=Callable[..., Any])


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to train one part."""

    steps: int
    batch: int  # samples in a step
    lr: float  # peak; reached after `warmup` steps, held, then lowered linearly to zero over the last `decay` steps
    warmup: int = 50
    decay: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    ema: float = 0.998  # decay of the average of the weights, per step; early steps average over fewer
    seed: int = 0
    checkpoint_seconds: float = 120.0
    log_every: int = 25  # steps

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        rising = min(1.0, (step + 1) / max(self.warmup, 1))
        falling = min(1.0, (self.steps - step) / max(self.decay, 1))
        return self.lr * min(rising, falling)


@dataclass
class Fitted:
    """The result of a run: the averaged weights and its cost."""

    model: nn.Module
    steps: int
    seconds: float
    metrics: dict[str, float]


def fit(model: nn.Module, loss: Loss, config: FitConfig, folder: Path, report: Report = print) -> Fitted:
    """Train `model` in place and return its averaged copy; `folder` keeps the log and what resuming needs.

    Lengthening `steps` of a finished or stopped run continues it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.pt"
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=config.betas, fused=True)
    for group in optimizer.param_groups:
        group["weight_decay"] = config.weight_decay
    start, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start, seconds = state["average"], int(state["step"]), float(state["seconds"])
        report(f"{folder.name}: continues at step {start} of {config.steps}")

    began, saved, window = time.perf_counter(), time.perf_counter(), _Window()
    shown: dict[str, float] = {}
    model.train()

    def save(step: int) -> None:
        spent = seconds + time.perf_counter() - began
        payload = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
        torch.save({**payload, "step": step, "seconds": spent}, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)  # never half a state

    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step)
        value, metrics = loss(step)
        value.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _blend(average, model, min(config.ema, (step + 1) / (step + 10)))
        window.add({"loss": value.item(), "norm": norm.item(), **metrics})
        if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
            shown = window.take()
            spent = seconds + time.perf_counter() - began
            line = {"step": step + 1, "seconds": round(spent, 1), "lr": config.lr_at(step), **shown}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            values = "  ".join(f"{name} {number:.4f}" for name, number in shown.items())
            report(f"{folder.name}: {step + 1}/{config.steps}  {values}  {spent:.0f} s")
        if time.perf_counter() - saved > config.checkpoint_seconds:
            save(step + 1)
            saved = time.perf_counter()
    save(max(config.steps, start))
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    model.load_state_dict(average)
    return Fitted(model.eval(), config.steps, seconds + time.perf_counter() - began, shown)


def load_average(model: nn.Module, folder: Path) -> int:
    """Put the averaged weights of a running or stopped `fit` into `model`; returns their step."""
    state = torch.load(folder / "state.pt", weights_only=True)
    model.load_state_dict(state["average"])
    return int(state["step"])


def generator(seed: int, step: int, stream: int = 0) -> np.random.Generator:
    """Randomness of one step: a function of the seed and the step, so that a resumed run gets the same numbers."""
    return np.random.default_rng([seed, stream, step])


def compiled(function: _Called) -> _Called:
    """`torch.compile` if a C++ compiler is available (1.5 times as fast on a CPU), else the function itself."""
    if shutil.which("g++") is None and shutil.which("clang++") is None and not torch.cuda.is_available():
        return function
    return cast(_Called, torch.compile(function))


@contextlib.contextmanager
def half(device: str = "cpu") -> Iterator[None]:
    """Matrix products in bfloat16, weights in float32: on CPUs with AVX-512 BF16 several times as fast as float32."""
    with torch.autocast(device, torch.bfloat16):
        yield


@torch.no_grad()
def _blend(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    new = model.state_dict()
    floats = [name for name, value in average.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in floats], [new[name] for name in floats], 1.0 - decay)
    for name in average.keys() - set(floats):
        average[name].copy_(new[name])


class _Window:
    """Means of the metrics since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._sums.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._sums = {}
        return means
