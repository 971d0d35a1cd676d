"""Where the parts of a pipeline come from, and whether they fit each other."""

import json
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import AutoencoderKL, DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download

from kosmosg.diffusion.decoder import load_part
from kosmosg.diffusion.schedulers import dpm_solver
from kosmosg.errors import CheckpointError
from kosmosg.model import KosmosG
from kosmosg.processor import KosmosGProcessor

Decoder: TypeAlias = DiffusionPipeline | str | Path
"""A Stable Diffusion pipeline, its folder, its Hub id, or `"toyworld"`."""

PARTS = ("unet", "vae", "scheduler", "safety_checker", "feature_extractor")
"""What a pipeline takes from its decoder."""


def decoder_parts(decoder: Decoder) -> dict[str, Any]:
    """U-Net, VAE, scheduler and, where there is one, safety checker of a Stable Diffusion 1.x pipeline or folder."""
    if isinstance(decoder, DiffusionPipeline):
        return {name: part for name in PARTS if (part := getattr(decoder, name, None)) is not None}
    # The scheduler of the published runs, unless whoever saved the decoder had chosen that scheduler and its settings.
    saved = load_part(DPMSolverMultistepScheduler, decoder, "scheduler", "load_config")
    chosen = saved.get("_class_name") == "DPMSolverMultistepScheduler"
    return {
        "unet": load_part(UNet2DConditionModel, decoder, "unet").eval(),
        "vae": load_part(AutoencoderKL, decoder, "vae").eval(),
        "scheduler": DPMSolverMultistepScheduler.from_config(saved) if chosen else dpm_solver(saved),
    }


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


def local_folder(source: str | Path, options: dict[str, Any]) -> Path:
    """The folder itself, or the downloaded snapshot of a Hub id.

    diffusers' own download refuses components whose class lives in another package than itself or transformers.
    """
    names = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")
    chosen = {name: options.pop(name) for name in names if name in options}
    if Path(source).is_dir():
        return Path(source)
    chosen.pop("proxies", None)
    try:
        return Path(snapshot_download(str(source), **chosen))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source} is neither a folder nor a reachable Hub id; check the path ({str(error).splitlines()[0]})"
        ) from error


def check_kind(index: Path, wanted: str) -> None:
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{index} is damaged ({error!r}); copy the folder again") from error
    if kind != wanted:
        raise CheckpointError(
            f"{index.parent} holds a {kind}, not a {wanted}; pass it as decoder=, beside an exported Kosmos-G model"
        )
