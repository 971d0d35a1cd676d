"""Sample images during training: the same few prompts each time, as one sheet."""

from collections.abc import Sequence

import torch
from PIL import Image

from kosmosg import KosmosG, KosmosGProcessor, Prompt
from kosmosg.data.contact_sheet import SheetRow, result_sheet
from kosmosg.diffusion.decoder import FrozenDecoder

SEED = 1234


def sample_sheet(
    model: KosmosG,
    processor: KosmosGProcessor,
    decoder: str,
    prompts: Sequence[Prompt],
    targets: Sequence[Image.Image | None],
    frozen: FrozenDecoder | None = None,
) -> Image.Image:
    """References, prompt, generated image, and the record's own image, one prompt per row.

    The noise of a row is the same every time, so that sheets of different steps can be compared. A stage that trains
    through its decoder passes it as `frozen`, because the training device has no room for a second U-Net; then only the
    scheduler of `decoder` is loaded.
    """
    from kosmosg import KosmosGPipeline  # seconds of imports, needed only where images are generated

    parts = {} if frozen is None else {"unet": frozen.unet, "vae": frozen.vae}
    pipe = KosmosGPipeline(
        model=model, processor=processor, decoder=decoder, safety_checker=None, feature_extractor=None, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(model.device, model.dtype)  # the stage's own components are loaded already
    generators = [torch.Generator().manual_seed(SEED + row) for row in range(len(prompts))]
    generated: Sequence[Image.Image] = pipe(list(prompts), generator=generators).images  # type: ignore[union-attr]
    with_targets = all(target is not None for target in targets)
    rows = [
        SheetRow(prompt, [image, target] if with_targets and target is not None else [image])
        for prompt, image, target in zip(prompts, generated, targets, strict=True)
    ]
    return result_sheet(rows, ["generated", "of the record"] if with_targets else ["generated"])
