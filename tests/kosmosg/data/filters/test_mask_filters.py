"""Masks that cover too little or too much, or that the segmenter is not sure of."""

import io

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, Sample, Span
from kosmosg.data.filters.mask_agreement import MaskAgreementFilter
from kosmosg.data.filters.mask_coverage import MaskCoverageFilter
from kosmosg.errors import ConfigError

SIDE = 20


def sample(*masks: np.ndarray) -> Sample:
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(out, format="PNG")
    spans = [Span(chr(97 + row), 2 * row, 2 * row + 1) for row in range(len(masks))]
    caption = " ".join(span.text for span in spans)
    return Sample("1", "test", out.getvalue(), caption=caption, spans=spans, cuts=[EntityMask(mask) for mask in masks])


def rectangle(pixels: int, probability: float = 1.0, start: int = 0) -> np.ndarray:
    """`pixels` pixels of one probability, 0 elsewhere."""
    mask = np.zeros(SIDE * SIDE, np.uint8)
    mask[start : start + pixels] = round(probability * 255)
    return mask.reshape(SIDE, SIDE)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ([], "low-coverage"),
        ([rectangle(0)], "low-coverage"),
        ([rectangle(39)], "low-coverage"),
        ([rectangle(40)], None),
        ([rectangle(320)], None),
        ([rectangle(321)], "high-coverage"),
        ([rectangle(20), rectangle(20, start=200)], None),
        ([rectangle(30), rectangle(30)], "low-coverage"),
        ([rectangle(200), rectangle(200, start=200)], "high-coverage"),
        ([rectangle(200, 0.3)], "low-coverage"),
        ([rectangle(200, 0.31)], None),
    ],
)
def test_the_share_of_all_masks_together_counts(masks: list[np.ndarray], reason: str | None) -> None:
    found = MaskCoverageFilter(min_share=0.1, max_share=0.8)(sample(*masks))
    assert (found.reason if found else None) == reason


def test_entities_of_unsure_masks_are_left_out_and_counted() -> None:
    given = sample(rectangle(40, 0.9), rectangle(40, 0.4), rectangle(40, 0.7), rectangle(40, 0.35))
    assert MaskAgreementFilter(min_score=0.6)(given) is None
    assert [span.text for span in given.spans] == ["a", "c"]
    assert [int(cut.probability.max()) for cut in given.cuts] == [round(0.9 * 255), round(0.7 * 255)]
    assert given.dropped == ["low-agreement"] * 2
    assert MaskAgreementFilter(min_score=0.6)(given) is None  # a second time changes nothing
    assert given.dropped == ["low-agreement"] * 2


def test_a_sample_without_any_sure_mask_is_turned_down() -> None:
    found = MaskAgreementFilter(min_score=0.6)(sample(rectangle(40, 0.5), rectangle(40, 0.4)))
    assert found is not None
    assert found.reason == "low-agreement"
    assert "0.50" in found.message


def test_the_score_is_the_mean_over_the_mask_only() -> None:
    mask = rectangle(100, 0.8)
    mask[10:] = round(0.2 * 255)  # below the threshold: not part of the mask
    mask[0, :10] = 255
    inside = mask[mask > 0.3 * 255]
    score = MaskAgreementFilter().score(EntityMask(mask))
    assert score == pytest.approx(inside.mean() / 255)
    assert 0.8 < score < 0.85


def test_entities_without_a_mask_are_left_to_compose() -> None:
    given = sample(rectangle(0), rectangle(40, 0.9))
    assert MaskAgreementFilter()(given) is None
    assert len(given.spans) == len(given.cuts) == 2
    assert MaskAgreementFilter()(sample()) is None


@pytest.mark.parametrize(
    "settings",
    [{"min_share": 0.9, "max_share": 0.5}, {"max_share": 1.5}, {"min_share": -0.1}, {"threshold": 1.0}],
)
def test_shares_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MaskCoverageFilter(**settings)


@pytest.mark.parametrize("settings", [{"min_score": 1.1}, {"min_score": -1}, {"threshold": 1}])
def test_scores_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MaskAgreementFilter(**settings)
