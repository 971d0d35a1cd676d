"""Helpers for inference: evaluation mode, execution device, and whether the weights have changed.

Used by `KosmosG.encode` and by `PromptEncoder`, which caches conditions for as long as they stay valid.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALL = 16_384  # elements of a parameter that is summed together with others
_BLOCKS = 64
_WEIGHT = 0x9E3779B97F4A7C1 | 1  # odd, so that no bit of a product is lost
_modes = threading.Lock()
_readers: dict[int, tuple[int, list[nn.Module]]] = {}
"""For each model (by id) currently used in evaluation mode: the number of users, and the modules to set back."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module has its previous mode again.

    Threads may overlap: the first one switches and the last one switches back, so that none of them sees dropout.
    """
    if torch.compiler.is_compiling():  # a compiled graph cannot hold a lock; models are compiled in their final mode
        yield
        return
    key = id(model)
    with _modes:
        readers, training = _readers.get(key, (0, []))
        if readers == 0:
            training = [module for module in model.modules() if module.training]
            for module in training:
                module.training = False
        _readers[key] = (readers + 1, training)
    try:
        yield
    finally:
        with _modes:
            readers, training = _readers.pop(key)
            if readers > 1:
                _readers[key] = (readers - 1, training)
            else:
                for module in training:
                    module.training = True


def execution_device(model: nn.Module) -> torch.device:
    """Where the model computes, which may not be where its parameters are: offloaded ones are elsewhere until used."""
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            device = getattr(each, "execution_device", None)
            if device is not None:
                return torch.device(device)
        group = _group_offloading(module)
        if group is not None:
            return torch.device(group.group.onload_device)
    return next(model.parameters()).device


@contextmanager
def summoned(model: nn.Module) -> Iterator[None]:
    """Load an offloaded model to its device, for callers that use its parts and not its `forward`.

    accelerate offloads it again after the pipeline call; diffusers' group offloading does so at the end of the block.
    """
    hook: Any = getattr(model, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(model)
    group = _group_offloading(model)
    if group is not None:
        group.pre_forward(model)
    try:
        yield
    finally:
        if group is not None:
            group.post_forward(model, None)


def _group_offloading(module: nn.Module) -> Any:
    """The hook with which diffusers offloads the group of layers led by this module; None if there is none."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook("group_offloading")


def precision_context(device: torch.device) -> Hashable:
    """The active autocast settings: results under different ones have different values."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def weights_version(model: nn.Module) -> int:
    """A number that changes whenever the model's outputs may change, so that results can be cached until then.

    Detects parameters that were written (also through `parameter.data`, as when EMA weights are copied in), replaced,
    added or cast, and PEFT adapters that were switched, scaled or merged. Moving to another device changes nothing.
    Every value is read: on one CPU thread this takes about 30 ms for a hundred million 32-bit parameters, a fraction of
    encoding one prompt. Not detected: changes of parameters that accelerate has offloaded.
    """
    # An offloaded parameter is replaced by a new, empty one after each use; an inference-mode tensor has no version
    # and is never written.
    parameters = tuple(
        (0 if p.is_meta else id(p), 0 if p.is_inference() else p._version, p.dtype) for p in model.parameters()
    )
    layers: list[Any] = [module for module in model.modules() if hasattr(type(module), "_disable_adapters")]
    adapters = tuple(
        (
            layer.disable_adapters,
            tuple(layer.active_adapters),
            tuple(getattr(layer, "merged_adapters", ())),
            tuple(getattr(layer, "scaling", {}).items()),
        )
        for layer in layers
    )
    return hash((parameters, adapters, _checksums(model)))


@torch.no_grad()
def _checksums(model: nn.Module) -> tuple[int, ...]:
    """Sums of bit patterns: exact, so they are the same on every device, and any changed value is detected."""
    large: dict[torch.device, list[Tensor]] = {}
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in model.parameters():
        values = parameter.detach()
        if values.is_meta or type(values) is not Tensor:  # put away by offloading, or a wrapper without plain values
            continue
        values = values.contiguous().view(-1)
        if values.numel() > _SMALL:
            large.setdefault(values.device, []).append(_checksum(values))
        else:
            small.setdefault((values.device, values.dtype), []).append(values)
    for (device, _), pieces in small.items():  # one sum for all of them: most parameters are vectors
        words = _words(torch.cat(pieces)).long()
        # Each position has its own weight, so that changes at several positions do not cancel out.
        weights = torch.arange(1, len(words) + 1, device=device) * _WEIGHT
        large.setdefault(device, []).append((words * weights).sum().view(1))
    return tuple(value for sums in large.values() for value in torch.cat(sums).tolist())


def _checksum(values: Tensor) -> Tensor:
    """One sum per block of a long vector, and one for the rest."""
    words = _words(values)
    even = len(words) // _BLOCKS * _BLOCKS
    blocks = words[:even].view(_BLOCKS, -1).sum(dim=1, dtype=torch.int64)
    return torch.cat([blocks, words[even:].sum(dtype=torch.int64).view(1)])


def _words(values: Tensor) -> Tensor:
    """A vector's bits as the widest integers that fit, which need no conversion and are summed at memory speed."""
    size = values.element_size()
    whole = values.numel() * size % 8 == 0 and values.storage_offset() * size % 8 == 0 and values.data_ptr() % 8 == 0
    return values.view(torch.int64 if whole else _INTEGERS[min(size, 8)])
