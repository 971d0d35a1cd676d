"""Kosmos-G: text and images in, the condition that Stable Diffusion listens to out.

In the order in which to read them: `prompt` (and `conversation`), `processor`, `config` (and `shapes`), `layers`,
`model`, `conditioners`, `prompt_encoder`, `diffusion` and `pipeline` are the model; `stages` train it on what `data`
reads; `eval` measures it; `hub` resolves its names, `checkpoint` and `convert` bring weights; `plugins` fill the
registries, `toyworld` is one of them; `errors` are what goes wrong.

The names below are the whole public interface. They load on first use, so that `import kosmosg` stays light: no torch,
no diffusers and never ray, deepspeed or mlflow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kosmosg.config import KosmosGConfig
    from kosmosg.errors import CheckpointError, ConfigError, DataError, ImageError, KosmosGError, PromptError
    from kosmosg.model import Condition, KosmosG
    from kosmosg.pipeline import KosmosGPipeline
    from kosmosg.processor import KosmosGProcessor
    from kosmosg.prompt import Prompt

__version__ = "0.1.0"

_HOME = {
    "KosmosG": "model",
    "Condition": "model",
    "KosmosGConfig": "config",
    "KosmosGProcessor": "processor",
    "KosmosGPipeline": "pipeline",
    "Prompt": "prompt",
    "KosmosGError": "errors",
    "PromptError": "errors",
    "ImageError": "errors",
    "CheckpointError": "errors",
    "DataError": "errors",
    "ConfigError": "errors",
}

__all__ = [
    "CheckpointError",
    "Condition",
    "ConfigError",
    "DataError",
    "ImageError",
    "KosmosG",
    "KosmosGConfig",
    "KosmosGError",
    "KosmosGPipeline",
    "KosmosGProcessor",
    "Prompt",
    "PromptError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kosmosg' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"kosmosg.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
