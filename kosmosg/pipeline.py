"""`KosmosGPipeline`: text and images in, images out, as a diffusers pipeline.

The model computes the condition, and a stock `StableDiffusionPipeline` generates the image. Nothing of diffusers is
forked: whatever Stable Diffusion 1.x can do with `prompt_embeds` (ControlNet, LoRA, image-to-image, inpainting, any
fine-tune) works here.

    pipe = KosmosGPipeline.from_pretrained(folder)
    image = pipe(Prompt("<i> in the style of <i>", images=[cat, painting])).images[0]

    # any other pipeline of the family, on the same weights:
    control = StableDiffusionControlNetPipeline.from_pipe(pipe.decoder, controlnet=controlnet)
    condition = pipe.encode(prompt)
    control(prompt_embeds=condition.positive, negative_prompt_embeds=condition.negative, image=edges)
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from kosmosg.diffusion.components import (
    CHECKER,
    NEEDED,
    PARTS,
    Decoder,
    Placement,
    check_fit,
    check_kind,
    decoder_parts,
    model_folder,
)
from kosmosg.diffusion.decoder import check_channels
from kosmosg.diffusion.lora import UnetLora, lora_scale
from kosmosg.diffusion.schedulers import dpm_solver, make_scheduler
from kosmosg.diffusion.stock import RunByStockPipeline
from kosmosg.errors import CheckpointError, ConfigError, PromptError
from kosmosg.hub import decoder_choices, decoder_of, shipped_decoder
from kosmosg.model.kosmosg import Condition, KosmosG, check_finite
from kosmosg.processor import KosmosGProcessor
from kosmosg.prompt import Prompt
from kosmosg.prompt_encoder import PromptEncoder

PromptLike = Prompt | str

# diffusers loads a component from the module named in `model_index.json`, and accepts it only if that module also has
# the base class that says how to load it. So our two components are listed there as belonging to this module.
__all__ = [
    "Decoder",
    "KosmosGPipeline",
    "PreTrainedModel",
    "ProcessorMixin",
    "PromptLike",
    "dpm_solver",
    "make_scheduler",
]


class KosmosGPipeline(RunByStockPipeline, DiffusionPipeline, StableDiffusionMixin, UnetLora):  # type: ignore[misc]
    """Kosmos-G and a Stable Diffusion 1.x decoder.

    Args:
        model, processor: a matching pair.
        unet, vae, scheduler, safety_checker, feature_extractor: the decoder's components, or
        decoder: where to load those that are not given. A pipeline keeps its own scheduler; a folder or id gets
            `dpm_solver`, the scheduler of the published runs, if none of that kind was saved with it. The safety
            checker of a decoder is kept; `safety_checker=None` disables it.
        default_steps, default_guidance: used if a call gives none; saved with the pipeline. 50 and 6.0 are those of
            the original app; a shipped decoder has its own (`"toyworld"`: 20 and 3.0).

    Raises:
        CheckpointError: components are missing or do not fit each other.
    """

    model_cpu_offload_seq = "model->unet->vae"
    _optional_components: ClassVar[list[str]] = list(CHECKER)
    _exclude_from_cpu_offload: ClassVar[list[str]] = ["safety_checker"]
    _callback_tensor_inputs: ClassVar[list[str]] = list(StableDiffusionPipeline._callback_tensor_inputs)
    fusing_unet = fusing_vae = False  # read by unfuse_qkv_projections

    def __init__(
        self,
        model: KosmosG,
        processor: KosmosGProcessor,
        unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        scheduler: KarrasDiffusionSchedulers | None = None,
        safety_checker: Any = "decoder",
        feature_extractor: Any = "decoder",
        decoder: Decoder | None = None,
        default_steps: int | None = None,
        default_guidance: float | None = None,
    ) -> None:
        super().__init__()
        given = dict(zip(PARTS, (unet, vae, scheduler, safety_checker, feature_extractor), strict=True))
        wanted = [name for name in NEEDED if given[name] is None]
        wanted += [name for name in CHECKER if given[name] == "decoder"]
        given |= dict.fromkeys(wanted) | (decoder_parts(decoder, wanted) if decoder is not None else {})
        absent = [name for name in NEEDED if given[name] is None]
        if absent:
            raise CheckpointError(
                f"the pipeline has no {' and no '.join(absent)}; pass decoder=, a pipeline, {decoder_choices()}"
            )
        if given["safety_checker"] is not None and given["feature_extractor"] is None:
            raise CheckpointError(
                "the safety checker has no feature_extractor; pass one, or safety_checker=None to disable it"
            )
        check_channels(given["unet"], given["vae"])
        check_fit(model, processor, given["unet"])
        self.register_modules(model=model.eval(), processor=processor, **given)
        made_for = shipped_decoder(decoder)
        steps, guidance = (made_for.default_steps, made_for.default_guidance) if made_for else (50, 6.0)
        self.register_to_config(
            default_steps=default_steps or steps,
            default_guidance=guidance if default_guidance is None else default_guidance,
        )
        self._encoder: PromptEncoder | None = None

    def register_to_config(self, **kwargs: Any) -> None:
        """As in diffusers, with this module as the home of model and processor (see `__all__`)."""
        for name in ("model", "processor"):
            if name in kwargs:
                kwargs[name] = (__name__, kwargs[name][1])
        super().register_to_config(**kwargs)

    # -- loading -----------------------------------------------------------------------------------------------------

    @classmethod
    def _get_signature_keys(cls, obj: Any) -> tuple[list[str], list[str]]:
        """U-Net, VAE and scheduler are required components, although `decoder` may provide them."""
        components, options = super()._get_signature_keys(obj)
        return sorted({*components, *NEEDED}), sorted({*options} - {*NEEDED})

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, decoder: Decoder | None = None, **kwargs: Any
    ) -> Self:
        """Load a model by its name (kosmosg/hub.py): `toyworld:instruct`, a folder, a URL or a Hub id.

        It is a whole pipeline (`model_index.json`) or an export. An export uses `decoder`, by default the one that it
        was trained for. A pipeline includes its decoder, which `decoder` replaces. Other options: `dtype`, `variant`,
        `device_map`, `scheduler=` and other components (`safety_checker=None` disables the decoder's), `revision`, ...
        With an export, `variant` applies only to the decoder, and `device_map` names one device.

        Raises:
            CheckpointError: it is neither, or a component is missing or damaged. ConfigError: an option does not apply.
        """
        folder = model_folder(pretrained_model_name_or_path, kwargs)
        own = (folder / "model_index.json").is_file()
        if own:
            check_kind(folder / "model_index.json", cls.__name__)
        elif decoder is None:
            decoder = decoder_of(pretrained_model_name_or_path, folder)
            if decoder is None:
                raise CheckpointError(
                    f"{pretrained_model_name_or_path} is not a pipeline folder (it has no model_index.json) and names "
                    f"no decoder that it was trained for; pass decoder=, a pipeline, {decoder_choices()}"
                )
        given = {name: kwargs.pop(name) for name in PARTS if name in kwargs}
        placement = Placement.of(kwargs)
        if decoder is not None:
            wanted = [name for name in PARTS if name not in given]
            taken = decoder_parts(decoder, wanted, kwargs.get("variant"))
            if not isinstance(decoder, DiffusionPipeline):  # a pipeline's components stay where and what they are
                placement.apply(taken)
            given = dict.fromkeys(wanted) | taken | given
        if own:
            pipeline: Self = super().from_pretrained(str(folder), **given, **kwargs)
            return pipeline
        others = kwargs.keys() - Placement.OPTIONS - {"variant"}
        if others:
            raise ConfigError(f"option {min(others)!r} is for pipeline folders, not for exports; leave it out")
        from kosmosg.checkpoint.export import load_export

        model, processor = load_export(folder)
        pipeline = cls(model=model, processor=processor, decoder=decoder, **given)
        placement.apply(pipeline.components)
        return pipeline

    @property
    def encoder(self) -> PromptEncoder:
        """Encodes prompts as conditions and caches them."""
        if self._encoder is None or (self._encoder.model, self._encoder.processor) != (self.model, self.processor):
            self._encoder = PromptEncoder(self.model, self.processor)
        return self._encoder

    # -- drawing -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self,
        prompt: PromptLike | Sequence[PromptLike],
        negative_prompt: PromptLike | Sequence[PromptLike] | None = None,
    ) -> Condition:
        """`Condition(positive, negative)`, each (B, Q, D): `prompt_embeds` for stock pipelines.

        The default negative is the null prompt, `<s>` alone. Prompts that were seen before are cached.
        """
        negatives = None if negative_prompt is None else _listed(negative_prompt, "negative_prompt")
        return self.encoder(_listed(prompt, "prompt"), negatives, self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: PromptLike | Sequence[PromptLike] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: PromptLike | Sequence[PromptLike] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        eta: float = 0.0,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_rescale: float = 0.0,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> StableDiffusionPipelineOutput | tuple[Any, Any]:
        """Generates `num_images_per_prompt` images for each prompt; all of one prompt, then all of the next.

        Args:
            prompt: a `Prompt`, a text, or a list of B of them; or pass `prompt_embeds` from `encode`.
            height, width: pixels, multiples of 8; default: the size that the decoder was trained on.
            num_inference_steps, guidance_scale: default: `default_steps`, `default_guidance`. A scale of 1 or less
                disables guidance, as everywhere in diffusers: the negative side is not computed.
            negative_prompt: what to avoid, one for all prompts or one for each; default: the null prompt.
            generator: for reproducible images; a list has one for each of the B x n images.
            callback_on_step_end: as in diffusers; its first argument is the stock pipeline, `pipe.decoder`.
            (the others: see `StableDiffusionPipeline`)

        Returns:
            `.images`, a list of B x n PIL images (or what `output_type` says), and `.nsfw_content_detected`.

        Raises:
            PromptError, ImageError: the prompt is invalid. ConfigError: another argument is invalid.
        """
        # 1. Resolve defaults and check arguments before anything is computed.
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        guidance = self.config.default_guidance if guidance_scale is None else guidance_scale
        if steps < 1 or not math.isfinite(guidance) or num_images_per_prompt < 1:
            raise ConfigError(
                f"num_inference_steps={steps}, guidance_scale={guidance}, "
                f"num_images_per_prompt={num_images_per_prompt}: "
                "at least 1 step, a finite guidance and at least 1 image are required"
            )
        height, width = self._size(height, width)

        # 2. Prompts to conditions.
        if (prompt is None) == (prompt_embeds is None):
            raise PromptError("give either prompt or prompt_embeds, and not both")
        if prompt is not None and negative_prompt_embeds is not None:
            raise PromptError("negative_prompt_embeds goes with prompt_embeds; with prompt, pass negative_prompt")
        if prompt is not None:
            # Without guidance the negative is not used: the prompt itself takes its place, which costs nothing.
            condition = self.encode(prompt, negative_prompt if guidance > 1 else prompt)
            prompt_embeds, negative_prompt_embeds = condition.positive, condition.negative
        elif negative_prompt is not None:
            raise PromptError("negative_prompt goes with prompt; with prompt_embeds, pass negative_prompt_embeds")
        elif negative_prompt_embeds is None and guidance > 1:
            raise PromptError("guidance needs negative_prompt_embeds; pass those of encode(), or guidance_scale=1")
        else:
            self._check_embeds(prompt_embeds, negative_prompt_embeds)

        # 3. The stock pipeline generates the images.
        others = dict(cross_attention_kwargs or {})
        with lora_scale(self.unet, others.pop("scale", 1.0)):
            output: StableDiffusionPipelineOutput | tuple[Any, Any] = self.decoder(
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds if guidance > 1 else None,
                height=height,
                width=width,
                num_inference_steps=steps,
                guidance_scale=guidance,
                num_images_per_prompt=num_images_per_prompt,
                generator=generator,
                latents=latents,
                output_type=output_type,
                return_dict=return_dict,
                eta=eta,
                timesteps=timesteps,
                sigmas=sigmas,
                guidance_rescale=guidance_rescale,
                cross_attention_kwargs=others or None,
                callback_on_step_end=callback_on_step_end,
                callback_on_step_end_tensor_inputs=list(callback_on_step_end_tensor_inputs),
            )
        self.maybe_free_model_hooks()
        return output

    def _check_embeds(self, *embeds: Tensor | None) -> None:
        width = self.unet.config.cross_attention_dim
        for given in embeds:
            if given is None:
                continue
            if given.ndim != 3 or given.shape[-1] != width:
                raise PromptError(
                    f"the embeddings have shape {tuple(given.shape)}, the U-Net expects (B, Q, {width}); pass those "
                    "from encode() of a pipeline with this decoder"
                )
            check_finite(given)

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        trained = self.unet.config.sample_size
        trained = (trained, trained) if isinstance(trained, int) else trained
        factor = self.decoder.vae_scale_factor
        sizes = [
            asked if asked is not None else side * factor for asked, side in zip((height, width), trained, strict=True)
        ]
        unit = math.lcm(8, factor)
        for name, size in zip(("height", "width"), sizes, strict=True):
            if size < unit or size % unit:
                below = max(size // unit, 1) * unit
                raise ConfigError(f"{name}={size} is not a multiple of {unit} pixels; take {below} or {below + unit}")
        return sizes[0], sizes[1]


def _listed(prompts: PromptLike | Sequence[PromptLike], name: str) -> list[PromptLike]:
    listed = [prompts] if isinstance(prompts, Prompt | str) else list(prompts)
    if not listed:
        raise PromptError(f"{name} is an empty list; pass at least one, the empty prompt is ''")
    return listed
