"""Kosmos-G: text and images in, the condition for Stable Diffusion's U-Net out.

In reading order: `prompt` (and `conversation`), `processor`, `config` (and `shapes`), `layers`, `model`,
`conditioners`, `prompt_encoder`, `diffusion` and `pipeline` make up the model; `stages` trains it on the records that
`data` defines; `eval` measures it; `hub` resolves model names; `checkpoint` and `convert` read and write weights;
`node_cache` keeps digests of files; `plugins` fills the registries, and `toyworld` is one of the plug-ins; `errors`
defines the exceptions.

The names below are the main public interface. They load on first use, so that `import kosmosg` stays light: no torch,
no diffusers, and never ray, deepspeed or mlflow.
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
