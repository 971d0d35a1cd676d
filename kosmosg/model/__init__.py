"""The model, in the order in which a prompt passes through it.

`vision` (CLIP tower, resampler) and `text` (Magneto language model) make up `mllm`; `kosmosg` adds a conditioner after
it. `generation` implements `generate()`, `inference` evaluation mode and caching, `padding` the handling of pads. The
names below load on first use, so that `import kosmosg.model` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kosmosg.model.kosmosg import Condition, KosmosG, KosmosGOutput
    from kosmosg.model.mllm import KosmosGForConditionalGeneration

_HOME = {
    "Condition": "kosmosg",
    "KosmosG": "kosmosg",
    "KosmosGOutput": "kosmosg",
    "KosmosGForConditionalGeneration": "mllm",
}

__all__ = ["Condition", "KosmosG", "KosmosGForConditionalGeneration", "KosmosGOutput"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kosmosg.model' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"kosmosg.model.{_HOME[name]}"), name)
