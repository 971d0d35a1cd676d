"""Leaves out entities whose masks the segmenter itself is not sure of."""

from dataclasses import dataclass
from typing import ClassVar

from kosmosg.data.annotators.base import EntityMask, Rejection, Sample
from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class MaskAgreementFilter:
    """By the mean of the segmenter's probability over the mask, before it is widened (a record's `score` is the mean
    after that, and a little lower). An entity below is taken out of the sample and counted as `low-agreement`; a sample
    without any entity left is turned down. Entities without a mask are left to `compose`, which names them."""

    needs: ClassVar[tuple[str, ...]] = ("masks",)

    min_score: float = 0.5
    """Mean probability, at least."""
    threshold: float = 0.3
    """Probability above which a pixel belongs to the mask, as in `compose.threshold`."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1 or not 0 <= self.threshold < 1:
            raise ConfigError(
                f"min_score is {self.min_score:g} and threshold {self.threshold:g}; both are probabilities"
            )

    def __call__(self, sample: Sample) -> Rejection | None:
        scores = [self.score(cut) for cut in sample.cuts]
        kept = [score is None or score >= self.min_score for score in scores]
        if all(kept):
            return None
        if not any(kept):
            best = max(score for score in scores if score is not None)
            return Rejection(
                "low-agreement", f"the surest mask has a score of {best:.2f}, less than {self.min_score:g}"
            )
        sample.dropped += ["low-agreement"] * kept.count(False)
        sample.spans = [span for span, keep in zip(sample.spans, kept, strict=True) if keep]
        sample.cuts = [cut for cut, keep in zip(sample.cuts, kept, strict=True) if keep]
        return None

    def score(self, cut: EntityMask) -> float | None:
        """Mean probability over a mask, 0 to 1; None where no pixel is above the threshold."""
        inside = cut.probability[cut.probability > self.threshold * 255]
        return float(inside.mean()) / 255 if inside.size else None
