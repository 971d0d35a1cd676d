"""The stock pipeline that does the denoising for ours, on the same components."""

from typing import Any

from diffusers import StableDiffusionPipeline

from kosmosg.diffusion.components import PARTS


def _of_the_run(name: str) -> property:
    """A property of ours that reads and writes an attribute of the stock pipeline."""
    return property(lambda self: getattr(self.decoder, name), lambda self, value: setattr(self.decoder, name, value))


class RunByStockPipeline:
    """For a pipeline with the components `PARTS`: `decoder` does the denoising, callbacks work with either pipeline."""

    _stock: StableDiffusionPipeline | None = None

    @property
    def decoder(self) -> StableDiffusionPipeline:
        """The stock pipeline that generates, on the same weights as this one: for `from_pipe` of other pipelines.

        It has no text encoder: pass `prompt_embeds` and `negative_prompt_embeds`.
        """
        parts: dict[str, Any] = {name: getattr(self, name) for name in PARTS}
        if self._stock is None or any(getattr(self._stock, name) is not part for name, part in parts.items()):
            self._stock = StableDiffusionPipeline(
                **parts, text_encoder=None, tokenizer=None, requires_safety_checker=False
            )
        if hasattr(self, "_progress_bar_config"):
            self._stock.set_progress_bar_config(**self._progress_bar_config)
        return self._stock

    guidance_scale = _of_the_run("guidance_scale")
    _guidance_scale = _of_the_run("_guidance_scale")
    guidance_rescale = _of_the_run("guidance_rescale")
    do_classifier_free_guidance = _of_the_run("do_classifier_free_guidance")
    cross_attention_kwargs = _of_the_run("cross_attention_kwargs")
    num_timesteps = _of_the_run("num_timesteps")
    interrupt = _of_the_run("interrupt")
    _interrupt = _of_the_run("_interrupt")
