"""What annotators and filters with a model share: where it runs, in which precision, how a missing one is told."""

from dataclasses import dataclass
from typing import Any

import torch

from kosmosg.errors import DataError


@dataclass(frozen=True)
class Loading:
    """How a model is loaded."""

    device: str = "auto"  # "cuda" when there is one, else "cpu"; or any torch device
    dtype: str = "auto"  # float16 on a GPU (as the original annotated), float32 on a CPU; or "bfloat16", ...

    def resolve(self) -> tuple[torch.device, torch.dtype]:
        """The torch device and dtype. Raises DataError for names that torch does not know."""
        name = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise DataError(f"device {self.device!r} is not one of torch's; use auto, cpu, cuda or cuda:0") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise DataError(f"device {self.device!r} was asked for, but torch sees no GPU; use device auto or cpu")
        if self.dtype == "auto":
            return device, torch.float16 if device.type == "cuda" else torch.float32
        dtype = getattr(torch, self.dtype, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise DataError(
                f"dtype {self.dtype!r} is not a floating type of torch; use auto, float32, float16, bfloat16"
            )
        return device, dtype


@dataclass(frozen=True)
class PretrainedSettings:
    """What every annotator or filter with a model takes."""

    model: str
    """Hub id or local folder."""
    device: str = "auto"
    """Torch device; auto is the GPU of the process if it has one, else the CPU."""
    dtype: str = "auto"
    """float32, float16 or bfloat16; auto is float16 on a GPU, float32 on a CPU."""

    def require(self) -> None:
        """Make sure that what will be loaded exists, before workers start. Raises DataError."""
        require_model(self.model)


def load_pretrained(
    model_class: Any, processor_class: Any, model: str, loading: Loading, complete: bool = False
) -> tuple[Any, Any, str]:
    """Model (eval mode, on its device), processor or tokenizer, and the name for the records, with the hub's commit.

    `model` is a hub id or a local folder. With `complete`, weights that it lacks are an error; transformers would start
    them at random. Raises DataError.
    """
    device, dtype = loading.resolve()
    try:
        processor = processor_class.from_pretrained(model)
        network, told = model_class.from_pretrained(model, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise _missing(model, error) from error
    except RuntimeError as error:  # weights of another size
        raise DataError(f"{model!r} is no {model_class.__name__} ({str(error).splitlines()[0]})") from error
    lacking = sorted(told["missing_keys"])
    if complete and lacking:
        raise DataError(
            f"{model!r} is no {model_class.__name__}: it has no weights for {lacking[0]}"
            + (f" and {len(lacking) - 1} others" if len(lacking) > 1 else "")
        )
    network = network.to(device).eval()
    commit = getattr(network.config, "_commit_hash", None)
    return network, processor, f"{model}@{commit[:12]}" if commit else model


def require_model(model: str) -> None:
    """Load only a model's configuration, so that a wrong name is reported before workers start. Raises DataError."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise _missing(model, error) from error


def _missing(model: str, error: Exception) -> DataError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return DataError(
        f"{model!r} is neither a local model folder nor available on the Hub "
        f"({type(error).__name__}: {first}); check the name, or download it first"
    )
