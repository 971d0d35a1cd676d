"""The optimizer on one or many devices, with DeepSpeed behind it. Its settings are in `engine_config`.

`Engine` is the only class that uses DeepSpeed. It runs forward, backward and step, and can convert the whole training
state to named full tensors and back, for any ZeRO stage and number of workers.

Facts about DeepSpeed 0.19.8 that this file relies on:
- On a CPU, initialising its communication compiles a shared-memory kernel: this takes 40 s, needs g++, and a killed
  build leaves a lock that the next process waits for forever. The kernel is disabled; gloo is used instead.
- The unfused low-precision optimizer of ZeRO-0 creates its state with a real optimizer step, weight decay included. The
  optimizer therefore starts with learning rate 0, and that state is discarded.
- Its hooks and caches outlive the engine: `destroy` releases them, but not in ZeRO-3.
- Optimizer state does not exist before the first step, and ZeRO-1/2 link it to parameters only then: right after the
  first parameter group stepped, when the other groups have no state yet. So it is linked again before it is read.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kosmosg.errors import CheckpointError
from kosmosg.stages import StageOutput
from kosmosg_platform.training.engine_config import EngineConfig, check, deepspeed_config
from kosmosg_platform.training.lr_schedule import TrainConfig, lr_multiplier

MOMENTS = ("exp_avg", "exp_avg_sq")
_MIN_LOSS_SCALE = 2.0**-13  # the original's 1e-4; DeepSpeed's configuration allows only whole numbers
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """A stage under DeepSpeed.

    `parameters` are the trainable (name, parameter) pairs of `stage`, in an order that is the same on every worker.
    torch.distributed must be up (Ray Train's TorchTrainer sees to that).
    """

    def __init__(
        self,
        stage: nn.Module,
        parameters: Sequence[tuple[str, nn.Parameter]],
        train: TrainConfig,
        config: EngineConfig,
        micro_batch: int,
        passes: int,
        world_size: int,
        on_gpu: bool = False,
    ) -> None:
        check(config, on_gpu)
        self.parameters = list(parameters)
        self.dtype = _DTYPES[config.precision]
        deepspeed = _deepspeed(on_gpu)
        # DeepSpeed finds tensors in tuples and dictionaries only. Left as it is, the stage's output would keep ZeRO-3
        # from gathering the stage's own parameters again in the backward pass.
        stage.register_forward_hook(lambda _module, _inputs, out: (out.loss, out.metrics))
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in parameters:
            groups.setdefault(lr_multiplier(train, name), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": members, "multiplier": multiplier} for multiplier, members in groups.items()],
            lr=0.0,
            betas=train.betas,
            eps=train.eps,
            weight_decay=train.weight_decay,
            fused=True if on_gpu and not config.offload_optimizer else None,
        )
        trained = sum(parameter.numel() for _, parameter in parameters)
        settings = deepspeed_config(train, config, micro_batch, passes, world_size, trained, on_gpu)
        self._engine, *_ = deepspeed.initialize(
            model=stage, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self._stage3 = config.zero_stage == 3
        self._wrapper = self._engine.optimizer
        self._inner: torch.optim.Optimizer = getattr(self._wrapper, "optimizer", self._wrapper)
        self._is_plain = self._wrapper is self._inner
        self._max_norm, self._norm = train.max_grad_norm or math.inf, 0.0
        self._inner.state.clear()
        if (scaler := self._scaler()) is not None:
            scaler.min_scale = scaler.min_loss_scale = _MIN_LOSS_SCALE
            scaler.raise_error_at_min_scale = False  # the loop decides what follows from many skipped steps

    @property
    def module(self) -> nn.Module:
        """The stage, wrapped by DeepSpeed (in ZeRO-3, weights are gathered layer by layer during forward)."""
        module: nn.Module = self._engine.module
        return module

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def parameters_are_sharded(self) -> bool:
        """True in ZeRO-3, where a forward pass needs all workers."""
        return self._stage3

    def __call__(self, batch: Mapping[str, Tensor]) -> StageOutput:
        """Forward pass of one micro-batch, after moving it to the device and floats to the engine's precision."""
        moved = {
            key: value.to(self.device, dtype=self.dtype if value.is_floating_point() else None, non_blocking=True)
            for key, value in batch.items()
        }
        loss, metrics = self._engine(moved)
        return StageOutput(loss, metrics)

    def backward(self, loss: Tensor) -> None:
        """Backward pass; gradients are averaged over micro-batches and workers."""
        self._engine.backward(loss)

    def step(self, rate: float) -> bool:
        """Call this after every micro-batch; the weights are updated after the last one of a batch.

        False if that update was skipped, on every worker, because the norm of the gradients is not finite. Weights and
        optimizer states are then what they were.
        """
        for group in self._wrapper.param_groups:
            group["lr"] = rate * group["multiplier"]
        last = self._engine.is_gradient_accumulation_boundary()
        applied = not (last and self._is_plain) or self._clip()
        self._engine.step()
        return applied and (not last or self._engine.was_step_applied())

    def gradient_norm(self) -> float:
        """Global gradient norm of the last step before clipping."""
        return float(self._norm if self._is_plain else self._engine.get_global_grad_norm() or 0.0)

    @property
    def lowers_loss_scale(self) -> bool:
        """Whether fp16 can still lower its loss scale after an overflow."""
        scaler = self._scaler()
        return scaler is not None and scaler.cur_scale > 1

    def _clip(self) -> bool:
        """Clip the gradients of ZeRO-0 in fp32; without a finite norm, drop them and return False.

        DeepSpeed checks the norm for every other optimizer; here it would apply NaN. All workers have the same
        gradients by now. The optimizer leaves parameters without gradients as they are.
        """
        parameters = [parameter for _, parameter in self.parameters]
        self._norm = float(nn.utils.clip_grad_norm_(parameters, self._max_norm))
        if math.isfinite(self._norm):
            return True
        for parameter in parameters:
            parameter.grad = None
        return False

    def release(self) -> None:
        """Free the memory of weights, gradients and optimizer states; the engine cannot be used afterwards."""
        module, masters = self.module, self._masters()
        self._engine.destroy()
        self._inner.state.clear()
        if self._stage3:  # which stays alive, so its contents are emptied
            flat = (getattr(self._wrapper, name, None) for name in ("lp_param_buffer", "grad_partitions_flat_buffer"))
            for tensor in (*module.parameters(), *module.buffers(), *masters, *flat):
                for held in (tensor, getattr(tensor, "ds_tensor", None), getattr(tensor, "grad", None)):
                    if held is not None:
                        held.untyped_storage().resize_(0)

    # -- the whole state as full tensors by name ------------------------------------------------------------------

    def full_state(self, keep: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Weights and AdamW moments as full fp32 CPU tensors named `param.X`, `exp_avg.X`, `exp_avg_sq.X`.

        Collective: every worker iterates over all of them, but only those of the parameters in `keep` are yielded.
        """
        self._link()
        for name, parameter in self.parameters:
            for kind in ("param", *MOMENTS):
                tensor = self._full(parameter, kind)
                if name in keep:
                    yield (
                        f"{kind}.{name}",
                        tensor.detach().to("cpu", torch.float32, copy=True).reshape(_shape(parameter)),
                    )

    def load_moments(self, state: Mapping[str, Tensor], optimizer_steps: int) -> None:
        """Restore what `full_state` returned; load the weights into the stage before creating the engine.

        Writes the fp32 master weights too, because DeepSpeed creates them from the rounded low-precision ones.
        """
        for flat in self._masters():
            fused = self._inner.param_groups[0].get("fused")
            step = torch.tensor(float(optimizer_steps), device=flat.device if fused else "cpu")
            zeros = {kind: torch.zeros_like(flat, memory_format=torch.preserve_format) for kind in MOMENTS}
            self._inner.state[flat] = {"step": step, **zeros}
        self._link()
        for name, parameter in self.parameters:
            for kind in ("param", *MOMENTS):
                value = state.get(f"{kind}.{name}")
                if value is None:
                    raise CheckpointError(
                        f"the checkpoint has no {kind} of {name}; it was made by another stage or model"
                    )
                self._set_full(parameter, kind, value.to(self.device, torch.float32))

    def optimizer_steps(self) -> int:
        """Steps that the optimizer took; steps that fp16 skipped do not count."""
        steps = [state["step"] for state in self._inner.state.values()]
        return int(steps[0]) if steps else 0

    def loss_scale_state(self) -> dict[str, float]:
        """The state of dynamic loss scaling; empty without it."""
        scaler = self._scaler()
        keys = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
        return {key: float(getattr(scaler, key)) for key in keys if scaler is not None and hasattr(scaler, key)}

    def load_loss_scale_state(self, state: Mapping[str, float]) -> None:
        scaler = self._scaler()
        for key, value in state.items():
            if scaler is not None and hasattr(scaler, key):
                setattr(scaler, key, type(getattr(scaler, key))(value))

    def full_weights(self, names: set[str]) -> Iterator[tuple[str, Tensor]]:
        """The full weights that the forward pass uses, for the parameters in `names`. Collective in ZeRO-3."""
        if not self._stage3:
            yield from ((name, parameter.detach()) for name, parameter in self.parameters if name in names)
            return
        import deepspeed

        for name, parameter in self.parameters:
            with deepspeed.zero.GatheredParameters([parameter]):
                if name in names:
                    yield name, parameter.detach()

    # -- how each kind of optimizer stores it ---------------------------------------------------------------------

    def _link(self) -> None:
        """Let ZeRO-1/2 find out which part of the optimizer state belongs to which parameter."""
        link = getattr(self._wrapper, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            self._wrapper._hp_optimizer_states_linked = False
            link()

    def _full(self, parameter: nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        master = self._plain_master(parameter)
        if master is not None:
            return master if kind == "param" else self._inner.state[master][kind]
        if kind == "param":
            return torch.as_tensor(safe_get_full_fp32_param(parameter))
        return torch.as_tensor(safe_get_full_optimizer_state(parameter, kind))

    def _set_full(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        master = self._plain_master(parameter)
        if master is not None:
            target = master if kind == "param" else self._inner.state[master][kind]
            target.data.copy_(value)
        elif self._stage3:
            # Its setter for full tensors fails if the size is not divisible by the workers, so the slice is cut here.
            part = self._slice(parameter, value)
            if kind == "param":
                safe_set_local_fp32_param(parameter, part)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
        elif kind == "param":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def _slice(self, parameter: nn.Parameter, value: Tensor) -> Tensor:
        """This worker's part of a full tensor in ZeRO-3: equal parts, the last one padded with zeros."""
        size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined] # what DeepSpeed adds to it
        start = size * torch.distributed.get_rank()
        part = torch.zeros(size, dtype=value.dtype, device=value.device)
        mine = value.flatten()[start : start + size]
        part[: mine.numel()] = mine
        return part

    def _plain_master(self, parameter: nn.Parameter) -> Tensor | None:
        """The full fp32 weight in ZeRO-0: the parameter itself, or its copy in the low-precision wrapper."""
        if self._is_plain:
            return parameter
        if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
            return None
        pairs = zip(chain(*self._wrapper.fp16_groups), chain(*self._wrapper.fp32_groups), strict=True)
        return next((copy for original, copy in pairs if original is parameter), None)

    def _masters(self) -> list[Tensor]:
        """The tensors that the inner optimizer updates: full ones in ZeRO-0, flat partitions otherwise."""
        for attribute in (
            "fp32_partitioned_groups_flat",  # ZeRO-3
            "single_partition_of_fp32_groups",  # ZeRO-1 and 2
            "fp32_groups_flat_partition",  # bf16 with fp32 gradient accumulation
        ):
            flat = getattr(self._wrapper, attribute, None)
            if flat is not None:
                return list(flat)
        if self._is_plain:
            return [parameter for _, parameter in self.parameters]
        return list(chain(*self._wrapper.fp32_groups))

    def _scaler(self) -> Any:
        """Whatever scales the loss dynamically; None in fp32 and bf16, where DeepSpeed has one that never changes."""
        scalers = (getattr(self._wrapper, name, None) for name in ("loss_scaler", "loss_scale_config"))
        dynamic = ("dynamic", "dynamic_loss_scale")
        return next((one for one in scalers if any(getattr(one, name, False) for name in dynamic)), None)


def _deepspeed(on_gpu: bool) -> Any:
    os.environ["DS_ACCELERATOR"] = "cuda" if on_gpu else "cpu"
    import deepspeed
    import deepspeed.ops

    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))  # the whole one, also where ZeRO-3 emptied it
