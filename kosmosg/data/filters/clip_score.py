"""Turns down captions that do not fit their image, by CLIP (Hessel et al. 2021, arXiv 2104.08718)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings
from kosmosg.data.filters.clip_embedder import ClipEmbedder
from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class ClipScoreSettings(PretrainedSettings):
    """What `clip_score` takes."""

    model: str = "openai/clip-vit-base-patch32"
    """Hub id or local folder of a CLIP."""
    min_similarity: float = 0.28
    """Cosine between image and caption, at least. 0.28 of ViT-B/32 is what LAION-5B kept its English pairs by; other
    models need other thresholds."""

    def __post_init__(self) -> None:
        if not -1 <= self.min_similarity <= 1:
            raise ConfigError(f"min_similarity is {self.min_similarity:g}; a cosine lies between -1 and 1")


class ClipScoreFilter:
    """The cosine between image and caption (not the 2.5-fold of it that is called CLIPScore).

    Args:
        model: hub id or local folder of a CLIP.
        device: torch device; auto is the GPU where there is one.
        dtype: auto is float16 on a GPU, float32 on a CPU.
        min_similarity: cosine, at least.
    """

    needs: ClassVar[tuple[str, ...]] = ("caption",)
    settings = ClipScoreSettings

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto", min_similarity: float = 0.28) -> None:
        self.embedder = ClipEmbedder(model, Loading(device, dtype))
        self.name = self.embedder.name
        self.min_similarity = min_similarity

    def __call__(self, samples: Sequence[Sample]) -> list[Rejection | None]:
        return [
            None
            if score >= self.min_similarity
            else Rejection(
                "low-similarity",
                f"image and caption {sample.caption[:80]!r} have a cosine of {score:.3f}, less than "
                f"{self.min_similarity:g}",
            )
            for sample, score in zip(samples, self.scores(samples), strict=True)
        ]

    def scores(self, samples: Sequence[Sample]) -> list[float]:
        """The cosine of each sample."""
        images = self.embedder.images([sample.image for sample in samples])
        texts = self.embedder.texts([sample.caption for sample in samples])
        cosines: list[float] = (images * texts).sum(dim=-1).tolist()
        return cosines
