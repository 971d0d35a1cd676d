"""Where the components of a pipeline come from, and whether they fit each other."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPImageProcessor

from kosmosg.diffusion.decoder import load_part
from kosmosg.diffusion.schedulers import dpm_solver
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.hub import decoder_folder, resolve_model
from kosmosg.model.kosmosg import KosmosG
from kosmosg.processor import KosmosGProcessor

logger = logging.getLogger(__name__)

Decoder: TypeAlias = DiffusionPipeline | str | Path
"""A Stable Diffusion pipeline, its folder, URL or Hub id, or one that ships, such as `"toyworld"`."""

NEEDED = ("unet", "vae", "scheduler")
"""What a decoder must have."""
CHECKER = ("safety_checker", "feature_extractor")
"""Optional parts of a decoder: the safety checker of generated images, and its preprocessing."""
PARTS = (*NEEDED, *CHECKER)
"""What a pipeline takes from its decoder."""


def decoder_parts(decoder: Decoder, wanted: Collection[str] = PARTS, variant: str | None = None) -> dict[str, Any]:
    """The components of a Stable Diffusion 1.x pipeline, folder or Hub id, by name.

    Args:
        decoder: where they are.
        wanted: which ones, of `PARTS`. Safety checker and feature extractor come where the decoder has them.
        variant: weights whose file names say so (`fp16`) where a component has them, as diffusers does.

    Raises:
        CheckpointError: a component is missing or damaged, or no component has weights of that variant.
    """
    if isinstance(decoder, DiffusionPipeline):
        return {name: part for name in wanted if (part := getattr(decoder, name, None)) is not None}
    parts: dict[str, Any] = {}
    if "scheduler" in wanted:
        # The scheduler of the published runs, unless the decoder was saved with that kind and settings of its own.
        saved = load_part(DPMSolverMultistepScheduler, decoder, "scheduler", "load_config")
        chosen = saved.get("_class_name") == "DPMSolverMultistepScheduler"
        parts["scheduler"] = DPMSolverMultistepScheduler.from_config(saved) if chosen else dpm_solver(saved)
    asked = [name for name in wanted if name in NEEDED or has_optional(decoder, name)]
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "safety_checker": StableDiffusionSafetyChecker}
    loaded = {name: _load_weights(kind, decoder, name, variant) for name, kind in kinds.items() if name in asked}
    if variant is not None and loaded and not any(is_variant for _, is_variant in loaded.values()):
        raise CheckpointError(
            f"You are trying to load the model files of the `variant={variant}`, but no such modeling files are "
            f"available in {decoder}; leave variant out"
        )
    parts |= {name: part.eval() for name, (part, _) in loaded.items()}
    if "feature_extractor" in asked:
        parts["feature_extractor"] = load_part(CLIPImageProcessor, decoder, "feature_extractor")
    return parts


def _load_weights(kind: Any, decoder: str | Path, name: str, variant: str | None) -> tuple[Any, bool]:
    """A component in float32, and whether its weights are those of `variant`."""
    folder = Path(decoder_folder(decoder))
    is_local = folder.is_dir()
    if variant is None or (is_local and not any((folder / name).glob(f"*.{variant}[.-]*"))):
        return load_part(kind, decoder, name, dtype=torch.float32), False
    try:
        return load_part(kind, decoder, name, dtype=torch.float32, variant=variant), True
    except CheckpointError:
        if is_local:
            raise
        return load_part(kind, decoder, name, dtype=torch.float32), False  # only asking tells what a Hub id holds


def has_optional(decoder: str | Path, name: str) -> bool:
    """Whether a folder or Hub id includes an optional component."""
    place = decoder_folder(decoder)
    try:
        named = DiffusionPipeline.load_config(place).get(name, (None, None))[1] is not None
    except (OSError, ValueError):
        named = False  # components without an index, as FrozenDecoder takes them too
    if not Path(place).is_dir():
        return named
    is_there = (Path(place) / name).is_dir()
    if named and not is_there:
        effect = "generated images are not checked" if name == "safety_checker" else "it is left out"
        logger.warning("%s names a %s but has none: %s", place, name, effect)
    return is_there


@dataclass(frozen=True)
class Placement:
    """Precision and device of a pipeline's components, from the options of `from_pretrained`."""

    dtype: torch.dtype | Mapping[str, torch.dtype] | None
    """For all components, or by name, with `"default"` for the others."""
    device: str | None

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"dtype", "torch_dtype", "device_map"})

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        dtype = options.get("dtype", options.get("torch_dtype"))
        return cls(dtype, options.get("device_map"))

    def apply(self, components: Mapping[str, Any]) -> None:
        """Cast and move them. Raises `ConfigError` if the device is a strategy for several devices."""
        if self.device == "balanced":
            raise ConfigError(
                'device_map="balanced" is for pipeline folders; write one with save_pretrained, or name one device'
            )
        for name, component in components.items():
            dtype = self._dtype_of(name)
            if isinstance(component, nn.Module) and (self.device is not None or dtype is not None):
                component.to(device=self.device, dtype=dtype)

    def _dtype_of(self, name: str) -> torch.dtype | None:
        if isinstance(self.dtype, Mapping):
            return self.dtype.get(name, self.dtype.get("default", torch.float32))
        return self.dtype


def check_fit(model: KosmosG, processor: KosmosGProcessor, unet: UNet2DConditionModel) -> None:
    pairs = (
        ("aligner_config.d_model", model.config.aligner_config.d_model, "U-Net's", unet.config.cross_attention_dim),
        ("text_config.vocab_size", model.config.text_config.vocab_size, "processor's", processor.vocab_size),
        ("vision_config.image_size", model.config.vision_config.image_size, "processor's", processor.image_size),
        ("latent_query_num", model.config.latent_query_num, "processor's", processor.num_image_tokens),
    )
    for name, has, whose, needs in pairs:
        if has != needs:
            raise CheckpointError(
                f"the model's {name} is {has}, the {whose} counterpart is {needs}; pair matching ones"
            )


def model_folder(name: str | Path, options: dict[str, Any]) -> Path:
    """The folder of an export or a pipeline; options for the download from the Hub are popped from `options`.

    diffusers' own download refuses components whose class lives in another package than itself or transformers.
    """
    names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    chosen = {option: options.pop(option) for option in names if option in options}
    options.pop("proxies", None)
    return resolve_model(name, **chosen)


def check_kind(index: Path, wanted: str) -> None:
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}); copy the folder again") from error
    if kind != wanted:
        raise CheckpointError(
            f"{index.parent} holds a {kind}, not a {wanted}; pass it as decoder=, beside an exported Kosmos-G model"
        )
