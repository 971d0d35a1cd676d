"""The model that `mlflow.pyfunc.load_model` gives: prompts of text and images in, images out.

model = mlflow.pyfunc.load_model("models:/kosmosg@champion")
table = pandas.DataFrame([{"prompt": "<i> at sea", "images": [base64_of_a_png]}])
model.predict(table, params={"seed": 7})      # a table with the column `image`: base64 of a PNG
"""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg.errors import DataError
from kosmosg.prompt import Prompt

DEFAULTS = {"steps": 0, "guidance": -1.0, "seed": 0}
"""Parameters of `predict`; 0 steps and a negative guidance take the decoder's own."""


def signature() -> Any:
    """What `predict` takes and gives: text in which each `<i>` stands for an image, and the images, in order."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    inputs = Schema(
        [
            ColSpec(DataType.string, "prompt"),
            ColSpec(Array(DataType.string), "images", required=False),
        ]
    )
    outputs = Schema([ColSpec(DataType.string, "image")])
    kinds = {"steps": DataType.long, "guidance": DataType.double, "seed": DataType.long}
    params = ParamSchema([ParamSpec(name, kinds[name], default) for name, default in DEFAULTS.items()])
    return ModelSignature(inputs, outputs, params)


class PromptToImage:
    """An export with its decoder; the interface that MLflow calls."""

    def __init__(self, folder: Path) -> None:
        from kosmosg import KosmosGPipeline

        self._pipe = KosmosGPipeline.from_pretrained(folder)
        self._pipe.set_progress_bar_config(disable=True)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """One generated image a row, as base64 of a PNG. Raises DataError for an image that is none."""
        import pandas
        import torch

        given = {**DEFAULTS, **(params or {})}
        prompts = [_prompt(row) for row in model_input.to_dict("records")]
        options: dict[str, Any] = {}
        if given["steps"] > 0:
            options["num_inference_steps"] = int(given["steps"])
        if given["guidance"] >= 0:
            options["guidance_scale"] = float(given["guidance"])
        seeds = range(int(given["seed"]), int(given["seed"]) + len(prompts))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images: Any = self._pipe(prompts, generator=generators, **options).images  # type: ignore[union-attr]
        return pandas.DataFrame({"image": [_encoded(image) for image in images]})


def _load_pyfunc(path: str) -> PromptToImage:
    """What MLflow calls, by this name, with the folder of the model."""
    return PromptToImage(Path(path))


def _prompt(row: Mapping[str, Any]) -> Prompt:
    images = row.get("images")
    return Prompt(str(row["prompt"]), images=[_decoded(text) for text in (images if images is not None else ())])


def _decoded(text: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(text.partition("base64,")[2] or text))).convert("RGB")
    except (ValueError, OSError) as error:
        raise DataError(f"images: one of them is not base64 of an image file ({error})") from error


def _encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
