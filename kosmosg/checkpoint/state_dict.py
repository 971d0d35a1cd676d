"""Reading other people's checkpoints safely and lazily, as a mapping from name to tensor.

Pickled files can contain code. They are read with torch's restricted unpickler, and the few other classes that training
frameworks leave in them (settings, enumerations) become inert placeholders: nothing is imported and nothing runs.
Tensors stay on disk until they are accessed, so a file larger than memory can be converted.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kosmosg.errors import CheckpointError

Source = Mapping[str, Any] | str | Path
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def open_weights(source: Source) -> Mapping[str, Tensor]:
    """The tensors of a state dict, a pickled file, a safetensors file or a folder of these, by name.

    From a training checkpoint, `{"model": {...}, ...}`, the model is taken. Raises `CheckpointError` if the source is
    missing or damaged, or contains code or no weights.
    """
    if isinstance(source, Mapping):
        return _state_dict(source, "the given mapping")
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}; give a file of weights or a folder that holds one")
    if path.suffix == ".safetensors":
        return _SafetensorsFiles([path])
    return _state_dict(_read_pickled(path), str(path))


def shape_of(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of one tensor, without reading its data if the format allows."""
    if isinstance(weights, _SafetensorsFiles):
        return weights.shape(name)
    return tuple(weights[name].shape)


def _open_folder(folder: Path) -> Mapping[str, Tensor]:
    shards = sorted(folder.glob("*.safetensors"))
    for index in folder.glob("*.safetensors.index.json"):
        named = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        missing = [path.name for path in named if not path.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}, which {index.name} names; copy the missing files"
            )
        shards = named
    if shards:
        return _SafetensorsFiles(shards)
    pickled = sorted(path for path in folder.iterdir() if path.suffix in _PICKLED)
    if len(pickled) != 1:
        found = ", ".join(path.name for path in pickled) or "none"
        raise CheckpointError(
            f"{folder} holds no safetensors and not exactly one {', '.join(_PICKLED)} file (found: {found}); name it"
        )
    return open_weights(pickled[0])


class _SafetensorsFiles(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files, each read on access."""

    def __init__(self, paths: list[Path]) -> None:
        self._home: dict[str, Any] = {}
        for path in paths:
            try:
                handle = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
            self._home.update(dict.fromkeys(handle.keys(), handle))  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._home[name].get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """From the file's header."""
        return tuple(self._home[name].get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


class _Inert:
    """Placeholder for objects of classes that must not be loaded: accepts any pickled state and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain_dict(*args: object) -> dict[Any, Any]:
    """Replaces `collections.defaultdict`, whose factory could be any callable."""
    return {}


def _read_pickled(path: Path) -> Any:
    """The object in a file of `torch.save`, memory-mapped where its format allows."""
    try:
        if not zipfile.is_zipfile(path):  # torch before 1.6, which cannot be mapped either
            return torch.load(path, map_location="cpu", weights_only=True)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        stand_ins: dict[str, Callable[..., Any]] = dict.fromkeys(names, _Inert)
        stand_ins["collections.defaultdict"] = _plain_dict
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as weights alone ({reason}); it is damaged or holds code. "
            "If you trust it, save its state dict as safetensors and give that"
        ) from error


def _state_dict(found: Any, origin: str) -> Mapping[str, Tensor]:
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(f"{origin} holds {type(found).__name__}, not weights by name; give a state dict")
    strangers = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f"{origin} holds {len(strangers)} values that are not tensors, such as {strangers[0]!r}; give a state dict"
        )
    return found


__all__ = ["Source", "open_weights", "shape_of"]
