"""Sample images of a model in training: the same few prompts each time, as one sheet."""

from collections.abc import Sequence

import torch
from PIL import Image

from kosmosg import KosmosG, KosmosGProcessor, Prompt
from kosmosg.eval.result_sheet import SheetRow, result_sheet

SEED = 1234


def sample_sheet(
    model: KosmosG,
    processor: KosmosGProcessor,
    decoder: str,
    prompts: Sequence[Prompt],
    targets: Sequence[Image.Image | None],
) -> Image.Image:
    """References, prompt, image, and the image that the record has, one prompt a row.

    The noise of a row is the same every time, so that sheets of different steps can be compared.
    """
    from kosmosg import KosmosGPipeline  # seconds of imports, needed only where images are drawn

    pipe = KosmosGPipeline(model=model, processor=processor, decoder=decoder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(model.device, model.dtype)
    generators = [torch.Generator().manual_seed(SEED + row) for row in range(len(prompts))]
    drawn: Sequence[Image.Image] = pipe(list(prompts), generator=generators).images  # type: ignore[union-attr]
    with_targets = all(target is not None for target in targets)
    rows = [
        SheetRow(prompt, [picture, target] if with_targets and target is not None else [picture])
        for prompt, picture, target in zip(prompts, drawn, targets, strict=True)
    ]
    return result_sheet(rows, ["drawn", "of the record"] if with_targets else ["drawn"])
