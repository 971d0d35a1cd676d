"""Turns down images that a classifier finds to be of a kind: not safe for work, with a watermark."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings, load_pretrained
from kosmosg.errors import ConfigError, DataError


@dataclass(frozen=True)
class ClassifierSettings(PretrainedSettings):
    """What `classifier` takes. For example `Falconsai/nsfw_image_detection` with the label `nsfw`, or
    `amrul-hzz/watermark_detector` with `watermark` and a threshold of 0.8."""

    label: str = ""
    """The label to turn down, one of the model's; it is the reason as well."""
    threshold: float = 0.5
    """Probability of the label from which an image is turned down."""

    def __post_init__(self) -> None:
        if not self.label:
            raise ConfigError("label: name the label to turn down, one of the model's (id2label in its config.json)")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold:g}; a probability lies between 0 and 1")


class ClassifierFilter:
    """The probability of one label: by softmax, or by sigmoid for a model whose labels do not exclude each other.

    Args:
        model: hub id or local folder of an image classifier.
        device: torch device; auto is the GPU where there is one.
        dtype: auto is float16 on a GPU, float32 on a CPU.
        label: the label to turn down.
        threshold: probability from which an image is turned down.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    settings = ClassifierSettings

    def __init__(
        self, model: str, device: str = "auto", dtype: str = "auto", label: str = "", threshold: float = 0.5
    ) -> None:
        self.network, self.processor, self.name = load_pretrained(
            AutoModelForImageClassification, AutoImageProcessor, model, Loading(device, dtype), complete=True
        )
        labels = {str(name).lower(): index for index, name in self.network.config.id2label.items()}
        if label.lower() not in labels:
            raise DataError(f"{model!r} knows no label {label!r}; it knows {', '.join(sorted(labels))}")
        self.index = labels[label.lower()]
        self.reason = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        self.label = label
        self.threshold = threshold

    def __call__(self, samples: Sequence[Sample]) -> list[Rejection | None]:
        return [
            Rejection(self.reason, f"{self.label!r} has a probability of {score:.2f}, not below {self.threshold:g}")
            if score >= self.threshold
            else None
            for score in self.scores(samples)
        ]

    @torch.inference_mode()
    def scores(self, samples: Sequence[Sample]) -> list[float]:
        """The probability of the label for each sample's image."""
        pixels = self.processor(images=[sample.image for sample in samples], return_tensors="pt")["pixel_values"]
        logits = self.network(pixel_values=pixels.to(self.network.device, self.network.dtype)).logits.float()
        several = self.network.config.problem_type == "multi_label_classification"
        scores = logits.sigmoid() if several else logits.softmax(dim=-1)
        found: list[float] = scores[:, self.index].tolist()
        return found
