"""Batches: samples of like size share one, and no answer depends on which others were in it.

The models are tiny ones of random weights, saved and loaded by the real code.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kosmosg.data.annotators.apply import apply
from kosmosg.data.annotators.base import Annotator, EntitySpans, Rejection, Sample, Span
from kosmosg.data.annotators.blip2 import Blip2Captioner
from kosmosg.data.annotators.clipseg import ClipSegSegmenter
from kosmosg.data.annotators.language_model import LanguageEntityFinder
from kosmosg.data.annotators.noun_chunks import NounChunkFinder
from kosmosg.data.image_bytes import encode_image
from kosmosg_platform.config import validate
from kosmosg_platform.datasets.steps import BuildConfig
from tests.tiny_annotators import tiny_blip2, tiny_clipseg, tiny_language_model

VOCABULARY = ["a", "cat", "and", "a", "dog", "in", "the", "garden", "Name", "things", "that", "can", "be", "seen"]
ROUNDING = 2
"""Steps of 1/255 by which a probability may differ: the same sums in another order."""


class Sized:
    """Answers with what it was given; `batches` holds the sizes of every batch."""

    fills, settings, hint, name = "caption", object, "", "sized"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def size(self, sample: Sample) -> int:
        return int(sample.caption)

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        self.batches.append([int(sample.caption) for sample in samples])
        if len(samples) > 1 and any(sample.caption == "0" for sample in samples):
            raise RuntimeError("one of them is damaged")
        return [f"{sample.id} {sample.caption}" for sample in samples]


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 9))
def test_like_sizes_share_a_batch_and_answers_keep_the_order(sizes: list[int], batch_size: int) -> None:
    annotator = Sized()
    samples = [Sample(str(index), "", b"", caption=str(size)) for index, size in enumerate(sizes)]
    assert apply(annotator, samples, batch_size) == [f"{index} {size}" for index, size in enumerate(sizes)]
    whole = [batch for batch in annotator.batches if 0 not in batch]
    assert all(len(batch) <= batch_size for batch in annotator.batches)
    assert whole == sorted(whole, key=max, reverse=True)
    falling = sorted((size for size in sizes if size), reverse=True)
    best = sum(max(falling[at : at + batch_size]) for at in range(0, len(falling), batch_size))
    assert sum(max(batch) for batch in whole) <= best or 0 in sizes


def made(count: int) -> list[Sample]:
    """Images of some sizes with captions of some lengths and entities of some number."""
    rng = np.random.default_rng(3)
    samples = []
    for index in range(count):
        size = (int(rng.choice([24, 40, 64])), int(rng.choice([24, 40, 64])))
        image = Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize(size, Image.Resampling.NEAREST)
        words = list(rng.choice(VOCABULARY, rng.integers(1, 20)))
        spans = [Span(word, 0, len(word)) for word in words[: rng.integers(0, 6)]]
        encoded = encode_image(image)
        samples.append(Sample(f"{index}", f"{index}", encoded, caption=" ".join(words), spans=spans))
    return samples


def as_plain(answer: Any) -> Any:
    """An answer without what rounding may change."""
    return [cut.probability.shape for cut in answer] if isinstance(answer, list) else answer


@pytest.fixture(scope="module")
def annotators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Annotator]:
    folder = tmp_path_factory.mktemp("models")
    captioner = Blip2Captioner(str(tiny_blip2(folder / "blip2")), "cpu", max_new_tokens=6)
    with torch.no_grad():
        for weights in captioner.network.parameters():
            weights.mul_(25 if weights.ndim > 1 else 1)  # so that captions depend on the image
    return {
        "blip2": captioner,
        "language_model": LanguageEntityFinder(str(tiny_language_model(folder / "llm")), "cpu", max_new_tokens=8),
        "clipseg": ClipSegSegmenter(str(tiny_clipseg(folder / "clipseg")), "cpu", entities_at_once=7),
        "noun_chunks": NounChunkFinder(),
    }


@pytest.mark.parametrize("use", ["blip2", "language_model", "clipseg", "noun_chunks"])
def test_no_answer_depends_on_its_batch(annotators: dict[str, Annotator], use: str) -> None:
    annotator = annotators[use]
    samples = made(20)
    alone = {sample.id: apply(annotator, [sample], 1)[0] for sample in samples}
    assert len({str(as_plain(answer)) for answer in alone.values()}) > 3  # so that a mix-up would show
    for seed, batch_size in enumerate((2, 3, 8, 20)):
        shuffled = random.Random(seed).sample(samples, len(samples))
        for sample, answer in zip(shuffled, apply(annotator, shuffled, batch_size), strict=True):
            assert as_plain(answer) == as_plain(alone[sample.id])
            if use == "clipseg":
                for cut, expected in zip(answer, alone[sample.id], strict=True):
                    difference = np.abs(cut.probability.astype(int) - expected.probability)
                    assert difference.max() <= ROUNDING


def test_a_damaged_image_leaves_the_others_their_captions(annotators: dict[str, Annotator]) -> None:
    samples = made(5)
    expected = apply(annotators["blip2"], samples, 5)
    damaged = Sample("torn", "torn", samples[2].encoded[:60])
    answers = apply(annotators["blip2"], [*samples[:2], damaged, Sample("none", "none", b""), *samples[2:]], 7)
    assert answers[:2] + answers[4:] == expected
    assert all(isinstance(answer, Rejection) and answer.reason == "unreadable" for answer in answers[2:4])


@pytest.mark.parametrize(("entities", "at_once"), [(1, 1), (5, 4), (60, 16), (200, 16)])
def test_clipseg_sees_no_more_entities_at_once_than_asked_for(
    annotators: dict[str, Annotator], monkeypatch: pytest.MonkeyPatch, entities: int, at_once: int
) -> None:
    segmenter = annotators["clipseg"]
    assert isinstance(segmenter, ClipSegSegmenter)
    monkeypatch.setattr(segmenter, "entities_at_once", at_once)
    seen: list[int] = []
    decode, encode = segmenter.network.decoder.forward, segmenter.network.clip.get_text_features

    def decoded(hidden_states: Any, conditional_embeddings: torch.Tensor, **given: Any) -> Any:
        seen.append(len(conditional_embeddings))
        return decode(hidden_states, conditional_embeddings, **given)

    def encoded(input_ids: torch.Tensor, **given: Any) -> Any:
        seen.append(len(input_ids))
        return encode(input_ids, **given)

    monkeypatch.setattr(segmenter.network.decoder, "forward", decoded)
    monkeypatch.setattr(segmenter.network.clip, "get_text_features", encoded)
    samples = made(2)
    for sample in samples:
        sample.spans = [Span(f"a cat {number}", 0, 5) for number in range(entities)]
    assert [len(cuts) for cuts in segmenter(samples)] == [entities, entities]
    assert max(seen) <= at_once
    assert sum(seen) == 3 * entities  # every mask once, and every phrase once


def test_entities_at_once_is_a_setting_of_the_step(annotators: dict[str, Annotator]) -> None:
    step = {"use": "clipseg", "model": annotators["clipseg"].name, "device": "cpu", "entities_at_once": 3}
    steps = [{"use": "sidecar"}, {"use": "nouns"}, step]
    config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps})
    masks = config.pipeline_steps(config.opened_source())[-1]
    assert masks.make().entities_at_once == 3
    assert isinstance(apply(NounChunkFinder(), made(1), 1)[0], EntitySpans | Rejection)
