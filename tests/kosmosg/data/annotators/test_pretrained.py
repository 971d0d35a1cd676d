"""The model-based annotators on tiny random models, saved and loaded by the real code. What random weights say is
nonsense; that it arrives in the right form, in any batch, is what is tested."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg.data.annotators.base import EntitySpans, Rejection, Sample, Span
from kosmosg.data.annotators.blip2 import Blip2Captioner
from kosmosg.data.annotators.clipseg import ClipSegSegmenter
from kosmosg.data.annotators.language_model import LanguageEntityFinder
from kosmosg.data.annotators.pretrained import Loading, require_model
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.pipeline_rows import PipelineRow
from kosmosg.errors import DataError
from kosmosg_platform.config import validate
from kosmosg_platform.datasets.answers import StepRunner
from kosmosg_platform.datasets.chunks import Chunk
from kosmosg_platform.datasets.steps import BuildConfig
from tests.tiny_annotators import tiny_blip2, tiny_clipseg, tiny_language_model


def pictures(count: int = 3) -> list[Sample]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        pixels = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        made.append(Sample(f"p{index}", f"p{index}", encode_image(Image.fromarray(pixels))))
    return made


@pytest.fixture(scope="module")
def blip2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language_model(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clipseg(tmp_path_factory.mktemp("clipseg"))


def test_blip2_captions_every_picture_the_same_in_any_batch(blip2: Path) -> None:
    captioner = Blip2Captioner(str(blip2), "cpu", "float32", max_new_tokens=5)
    samples = pictures()
    together = captioner(samples)
    assert len(together) == 3
    assert all(isinstance(answer, str | Rejection) for answer in together)
    assert [captioner([sample])[0] for sample in samples] == together
    assert captioner.name == str(blip2)


def test_half_precision_is_a_setting(blip2: Path) -> None:
    captioner = Blip2Captioner(str(blip2), "cpu", "bfloat16", max_new_tokens=2)
    assert captioner.network.dtype == torch.bfloat16
    assert len(captioner(pictures(1))) == 1


def test_a_language_model_answers_with_entities_or_a_refusal(language_model: Path) -> None:
    finder = LanguageEntityFinder(str(language_model), "cpu", max_new_tokens=6)
    samples = pictures()
    for sample, caption in zip(samples, ["a cat and a dog", "a dog in the garden", "a garden"], strict=True):
        sample.caption = caption
    for sample, answer in zip(samples, finder(samples), strict=True):
        assert isinstance(answer, EntitySpans | Rejection)
        if isinstance(answer, EntitySpans):
            assert all(sample.caption[s.start : s.end] == s.text for s in answer.spans)
    # Left padding: a short caption beside a long one is answered as if it were alone.
    captions = ["a cat", "a cat and a dog in the garden and a cat and a dog"]
    assert finder.ask(captions)[0] == finder.ask(captions[:1])[0]


def test_the_question_uses_the_chat_template_where_there_is_one(language_model: Path, tmp_path: Path) -> None:
    finder = LanguageEntityFinder(str(language_model), "cpu")
    assert finder.question("a cat").endswith("Description: a cat\nThings:")
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    finder.tokenizer.chat_template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    assert finder.question("a cat").endswith("[user]a cat[assistant]")
    finder.tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" dog, frisbee\n\nDescription: more", ["dog", "frisbee"]),
        ("dog and frisbee.", ["dog", "frisbee"]),
        ("frisbee, unicorn", ["frisbee"]),
        ("\n  'Dog'", ["dog"]),
    ],
)
def test_answers_are_read(answer: str, expected: list[str]) -> None:
    found = LanguageEntityFinder.read("a brown dog with a frisbee", answer)
    assert isinstance(found, EntitySpans)
    assert [span.text for span in found.spans] == expected


@pytest.mark.parametrize(("answer", "reason"), [("none", "no-entity"), ("", "no-entity"), ("### Input", "bad-answer")])
def test_useless_answers_are_refused(answer: str, reason: str) -> None:
    refused = LanguageEntityFinder.read("a brown dog with a frisbee", answer)
    assert isinstance(refused, Rejection)
    assert refused.reason == reason


def test_clipseg_gives_a_map_for_every_entity(clipseg: Path) -> None:
    segmenter = ClipSegSegmenter(str(clipseg), "cpu", "float32")
    samples = pictures()
    samples[0].spans = [Span("cat", 2, 5), Span("dog", 10, 13)]
    samples[2].spans = [Span("garden", 0, 6)]
    cuts = segmenter(samples)
    assert [len(row) for row in cuts] == [2, 0, 1]
    for sample, row in zip(samples, cuts, strict=True):
        for cut in row:
            assert cut.probability.shape == (sample.image.height, sample.image.width)
            assert cut.probability.dtype == np.uint8
    alone = segmenter([samples[2]])[0][0].probability
    assert np.abs(alone.astype(int) - cuts[2][0].probability).max() <= 1
    assert segmenter([samples[1]]) == [[]]


def test_chosen_by_configuration_they_annotate_a_photo(
    blip2: Path, language_model: Path, clipseg: Path, tmp_path: Path
) -> None:
    given = {"blip2": blip2, "language_model": language_model, "clipseg": clipseg}
    steps_given = [{"use": use, "model": str(model), "device": "cpu"} for use, model in given.items()]
    config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps_given})
    steps = config.pipeline_steps(config.opened_source())
    chunk = Chunk("part-00000", 0, 0, 1, "key", "content")
    captioner, finder, segmenter = (StepRunner(tmp_path / "set", step) for step in steps)
    (row,) = captioner.run([PipelineRow(0, 1, pictures(1)[0])], chunk)
    if row.sample is None:  # random weights may say nothing; then there is a rejection in its place
        assert row.refusal is not None
        row = PipelineRow(0, 1, pictures(1)[0])
    assert row.sample is not None
    row.sample.caption = "a cat and a dog"
    (row,) = finder.run([row], chunk)
    if row.sample is None:
        row = PipelineRow(0, 1, pictures(1)[0])
    assert row.sample is not None
    row.sample.spans = [Span("cat", 2, 5)]
    (row,) = segmenter.run([row], chunk)
    assert row.sample is not None
    assert len(row.sample.cuts) == 1
    assert row.names["segmenter"] == str(clipseg)
    assert [step.model for step in steps] == [str(model) for model in given.values()]


def test_a_missing_model_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(DataError, match="neither a local model folder nor available on the Hub"):
        require_model(str(tmp_path))
    for make in (Blip2Captioner, LanguageEntityFinder, ClipSegSegmenter):
        with pytest.raises(DataError, match="neither a local model folder nor available on the Hub"):
            make(str(tmp_path))


@pytest.mark.parametrize(("given", "told"), [({"device": "gpu9"}, "device"), ({"dtype": "int8"}, "dtype")])
def test_an_unknown_device_or_precision_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        Loading(**given).resolve()


def test_clipseg_encodes_an_image_once_and_says_what_the_model_says(
    clipseg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = ClipSegSegmenter(str(clipseg), device="cpu", entities_at_once=2)
    samples = pictures(3)
    samples[0].spans = [Span("cat", 0, 3), Span("dog", 0, 3), Span("garden", 0, 6)]
    samples[2].spans = [Span("dog", 0, 3)]
    encoded: list[int] = []
    features = segmenter.network.clip.get_image_features

    def counted(pixel_values: torch.Tensor, **given: Any) -> Any:
        encoded.append(len(pixel_values))
        return features(pixel_values=pixel_values, **given)

    monkeypatch.setattr(segmenter.network.clip, "get_image_features", counted)
    cuts = segmenter(samples)
    assert encoded == [2]
    monkeypatch.undo()
    for sample, found in zip(samples, cuts, strict=True):
        assert len(found) == len(sample.spans)
        for span, cut in zip(sample.spans, found, strict=True):
            batch = segmenter.processor(text=[span.text], images=[sample.image], return_tensors="pt", padding=True)
            with torch.inference_mode():
                logits = segmenter.network(**batch).logits.reshape(1, 1, 32, 32)
            size = (sample.image.height, sample.image.width)
            expected = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False).sigmoid()
            assert np.abs(cut.probability / 255 - expected[0, 0].numpy()).max() < 0.003
