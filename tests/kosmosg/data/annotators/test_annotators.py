"""Annotators without weights: what they say of simple cases, and that one bad sample costs one sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.annotators.apply import apply
from kosmosg.data.annotators.base import EntityMask, EntitySpans, Reference, Rejection, Sample, Span
from kosmosg.data.annotators.nouns import NounFinder, find_spans
from kosmosg.data.annotators.sidecar import SidecarCaptioner, readable
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.pipeline_rows import PipelineRow, from_table, to_table
from kosmosg.toyworld.annotators import ToyworldCaptioner, ToyworldEntityFinder, ToyworldSegmenter
from kosmosg.toyworld.scene import Scene, masks
from kosmosg.toyworld.source import SceneReader


def sample(**hints: str) -> Sample:
    return Sample(id="a/1.jpg", source="a/1.jpg", encoded=encode_image(Image.new("RGB", (8, 8))), hints=hints)


@pytest.mark.parametrize(
    ("hints", "caption"),
    [
        ({"folder": "grey_sloth_plushie"}, "a photo of a grey sloth plushie"),
        ({"folder": "dog2"}, "a photo of a dog"),
        ({"folder": "orangeJuice-03"}, "a photo of an orange juice"),
        ({"folder": "pink_sunglasses"}, "a photo of pink sunglasses"),
        ({"folder": "glass"}, "a photo of a glass"),
        ({"folder": "cat", "sidecar": " two cats\n on a sofa "}, "two cats on a sofa"),
        ({"folder": "", "stem": "IMG_2231", "root": "teapots"}, "a photo of teapots"),
        ({"folder": "", "stem": "red-vase_1", "root": "photos"}, "a photo of a red vase"),
    ],
)
def test_a_photo_is_called_by_its_text_file_or_folder(hints: dict[str, str], caption: str) -> None:
    assert SidecarCaptioner().caption(sample(**hints)) == caption


def test_a_photo_without_any_name_is_refused() -> None:
    answer = SidecarCaptioner().caption(sample(folder="2024_03", stem="DSC_0001", root="01"))
    assert isinstance(answer, Rejection)
    assert answer.reason == "no-caption"
    assert readable("0001") == ""


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("a photo of a grey sloth plushie", "sloth plushie"),
        ("a photo of pink sunglasses", "sunglasses"),
        ("a brown dog running on the beach", "dog"),
        ("Two young guys with shaggy hair look at their hands", "guys"),
        ("the teapot", "teapot"),
        ("a ring on a finger", "ring"),
    ],
)
def test_the_noun_of_a_simple_caption(caption: str, noun: str) -> None:
    found = NounFinder().find(caption)
    assert isinstance(found, EntitySpans)
    (span,) = found.spans
    assert span.text == noun == caption[span.start : span.end]


def test_a_caption_of_adjectives_has_no_noun() -> None:
    assert isinstance(NounFinder().find("a big red"), Rejection)


def test_tags_become_spans_or_a_named_reason() -> None:
    caption = "A Cat and a hot dog beside an orange van"
    found = find_spans(caption, ["van", "cat", "orange", "dog", "hot dog", "unicorn", "cat", "beside an"])
    assert [span.text for span in found.spans] == ["Cat", "hot dog", "beside an", "van"]
    assert all(caption[span.start : span.end] == span.text for span in found.spans)
    assert [dropped.reason for dropped in found.dropped] == [
        "colour-word",
        "ambiguous",
        "not-in-caption",
        "duplicate",
    ]


def test_part_of_a_word_is_not_the_word() -> None:
    assert find_spans("a category of t-shirts and a t-shirt", ["cat", "t-shirt"]).spans == [Span("t-shirt", 29, 36)]
    assert find_spans("c++ (a book)", ["c++", "(a book)"]).spans[0].text == "c++"  # signs of regular expressions


class Picky:
    """Fails on the whole batch when one sample is called `bad`, as a tokenizer or a GPU does."""

    name = "picky"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        self.sizes.append(len(samples))
        if any(s.hints.get("folder") == "bad" for s in samples):
            raise KeyError("bad")
        return [s.hints["folder"] for s in samples]


def test_one_bad_sample_costs_one_sample() -> None:
    names = ["a", "b", "bad", "c", "d"]
    picky = Picky()
    answers = apply(picky, [sample(folder=name) for name in names], batch_size=4)
    assert [answer if isinstance(answer, str) else answer.reason for answer in answers] == [
        "a",
        "b",
        "unexpected-KeyError",
        "c",
        "d",
    ]
    assert picky.sizes == [4, 1, 1, 1, 1, 1]  # the good batch is not tried again


def test_too_few_answers_are_our_fault() -> None:
    class Lazy:
        name = "lazy"

        def __call__(self, samples: Sequence[Sample]) -> list[str]:
            return ["one"]

    with pytest.raises(RuntimeError, match="1 answers to 2 samples"):
        apply(Lazy(), [sample(), sample()], batch_size=2)


def test_a_damaged_picture_is_unreadable() -> None:
    class Looks:
        name = "looks"

        def __call__(self, samples: Sequence[Sample]) -> list[str]:
            return [str(s.image.size) for s in samples]

    broken = Sample(id="x", source="x", encoded=b"\x89PNG and no more")
    answers = apply(Looks(), [sample(), broken], batch_size=8)
    assert answers[0] == "(8, 8)"
    assert answers[1].reason == "unreadable"


def test_samples_survive_the_way_between_stages() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    reference = Reference(Image.fromarray(pixels), rng.random((5, 5)) > 0.5)
    before = sample(folder="cat", sidecar="süß")
    before.caption, before.spans = "a cat", [Span("cat", 2, 5)]
    before.cuts = [EntityMask(rng.integers(0, 256, (8, 8), dtype=np.uint8), reference)]
    before.dropped = ["ambiguous"]
    rows = [
        PipelineRow(3, 3, before, names={"captioner": "x"}),
        PipelineRow(3, 3, sample()).refused("masks", "why", "because"),
    ]
    after, refused = from_table(to_table([*rows, PipelineRow(3, 3)]))[:2]
    assert after.sample is not None
    assert (after.sample.caption, after.sample.spans, after.sample.hints) == (
        before.caption,
        before.spans,
        before.hints,
    )
    assert after.names == {"captioner": "x"}
    assert after.sample.dropped == ["ambiguous"]
    (cut,) = after.sample.cuts
    assert (cut.probability == before.cuts[0].probability).all()
    assert cut.reference is not None
    assert (np.asarray(cut.reference.image) == pixels).all()
    assert (cut.reference.mask == reference.mask).all()
    assert refused.sample is None
    assert refused.refusal == {
        "id": "a/1.jpg",
        "source": "a/1.jpg",
        "stage": "masks",
        "reason": "why",
        "message": "because",
    }


def toyworld_samples(count: int = 40) -> list[Sample]:
    reader = SceneReader(count, seed=3)
    rows = list(reader.read(list(reader.items())))
    return [row for row in rows if isinstance(row, Sample)]


def test_the_world_is_annotated_exactly() -> None:
    samples = toyworld_samples()
    captions, found, cuts = ToyworldCaptioner()(samples), ToyworldEntityFinder()(samples), ToyworldSegmenter()(samples)
    for one, caption, entities, regions in zip(samples, captions, found, cuts, strict=True):
        scene = Scene.from_json(one.hints["scene"])
        assert [caption[s.start : s.end] for s in entities.spans] == [s.text for s in entities.spans]
        assert all(e.kind in s.text for e, s in zip(scene.entities, entities.spans, strict=True))
        assert (np.stack([cut.probability for cut in regions]) > 0).tolist() == masks(scene).tolist()


def test_a_reference_shows_the_same_subject_elsewhere() -> None:
    samples = toyworld_samples()
    same_picture = 0
    for one, regions in zip(samples, ToyworldSegmenter()(samples), strict=True):
        scene = Scene.from_json(one.hints["scene"])
        pixels = np.asarray(one.image)
        for entity, cut in zip(scene.entities, regions, strict=True):
            assert cut.reference is not None
            subject = np.asarray(cut.reference.image)[cut.reference.mask]
            here = pixels[cut.probability > 0]
            # The saturated colour of a subject is its own: the same in both pictures, up to rounding of the painter.
            colours = {tuple(c) for c in here.tolist()} & {tuple(c) for c in subject.tolist()}
            assert colours, f"{entity} shares no colour with its reference"
            left, top, right, bottom = entity.box
            crop = Image.fromarray(pixels[top:bottom, left:right]).resize((32, 32), Image.Resampling.NEAREST)
            same_picture += (np.asarray(crop) == np.asarray(cut.reference.image)).all()
    assert same_picture <= 1  # a reference that is the crop itself would teach copying


def test_annotating_does_not_depend_on_the_batch() -> None:
    samples = toyworld_samples(6)
    together = ToyworldCaptioner()(samples), ToyworldSegmenter()(samples)
    for index, one in enumerate(samples):
        assert ToyworldCaptioner()([one])[0] == together[0][index]
        alone = ToyworldSegmenter()([one])[0]
        for cut, other in zip(alone, together[1][index], strict=True):
            assert cut.reference is not None
            assert other.reference is not None
            assert cut.reference.image.tobytes() == other.reference.image.tobytes()


def test_plain_annotators_need_no_torch() -> None:
    library = Path(__file__).parents[4] / "kosmosg"
    plain = [
        library / "data" / "annotators" / f"{name}.py" for name in ("base", "apply", "nouns", "sidecar", "grabcut")
    ]
    for source in [*plain, library / "toyworld" / "annotators.py"]:
        assert "import torch" not in source.read_text(), source
