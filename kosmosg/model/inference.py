"""What a model that only answers must know of itself: its mode, its device, and whether its weights are still the same.

Used by `KosmosG.encode` and by `PromptEncoder`, which keeps answers for as long as they would be the same.
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
_WEIGHT = 0x9E3779B97F4A7C1 | 1  # odd: no bit of a product is lost
_modes = threading.Lock()
_readers: dict[int, tuple[int, list[nn.Module]]] = {}
"""For each model (by id) that is being read in evaluation mode: how many readers, and the modules to set back."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module is in the mode that it was in.

    Threads may overlap: the first one in switches, the last one out switches back, so that none of them meets dropout.
    """
    if torch.compiler.is_compiling():  # a graph cannot hold a lock; `torch.compile` is given a model in its final mode
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
    """Where the model computes. Not where its parameters are: offloaded ones have no memory until their layer runs."""
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
    """Bring a model that is kept elsewhere between calls, for whoever uses its parts and not its `forward`.

    accelerate lets it go when the pipeline has ended; what diffusers offloads in groups leaves with the block.
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
    """The hook by which diffusers offloads a group of layers that this module leads; None where there is none."""
    registry: Any = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook("group_offloading")


def precision_context(device: torch.device) -> Hashable:
    """The autocast that is in force: answers given under another one have other values."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def weights_version(model: nn.Module) -> int:
    """A number that differs once the model may answer differently, so that what it said before can be kept until then.

    Seen are parameters that were written (also through `parameter.data`, as averages of weights are copied in),
    replaced, added or cast, and adapters of PEFT that were switched, scaled or merged. Moving to another device changes
    nothing. Every value is read: on one CPU thread that takes about 30 ms for a hundred million parameters of 32 bits,
    a fraction of reading one prompt. Not seen: parameters that accelerate has put away.
    """
    # A parameter that offloading has put away is another, empty one after each use; a tensor of inference mode has no
    # version and is never written.
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
    """Sums of bit patterns: exact, so they are the same on every device, and any single value that changes shows."""
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
        # Each place has a weight of its own, so that changes in several places do not cancel out.
        weights = torch.arange(1, len(words) + 1, device=device) * _WEIGHT
        large.setdefault(device, []).append((words * weights).sum().view(1))
    return tuple(value for sums in large.values() for value in torch.cat(sums).tolist())


def _checksum(values: Tensor) -> Tensor:
    """One sum for each of `_BLOCKS` stretches of a long vector, and for the rest."""
    words = _words(values)
    even = len(words) // _BLOCKS * _BLOCKS
    blocks = words[:even].view(_BLOCKS, -1).sum(dim=1, dtype=torch.int64)
    return torch.cat([blocks, words[even:].sum(dtype=torch.int64).view(1)])


def _words(values: Tensor) -> Tensor:
    """A vector's bits as the widest integers that fit: those need no conversion, so they are summed at memory speed."""
    size = values.element_size()
    whole = values.numel() * size % 8 == 0 and values.storage_offset() * size % 8 == 0 and values.data_ptr() % 8 == 0
    return values.view(torch.int64 if whole else _INTEGERS[min(size, 8)])
