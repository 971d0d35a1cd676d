"""What a stage learns from follows from the table of record kinds and from what lies on the disk."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmosg import KosmosGConfig, KosmosGProcessor
from kosmosg.data.collate.pretrain import PretrainCollate
from kosmosg.data.contact_sheet import contact_sheet
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.records import RECORD_KINDS, RecordKind, SampleKind, stage_samples
from kosmosg.errors import ConfigError, DataError
from kosmosg_platform.datasets.dataset import write_manifest, write_records
from kosmosg_platform.planning.flops import STABLE_DIFFUSION, stage_cost
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.mixture import DataConfig, find_mixture
from tests.made_records import records, write_dataset

STAGES = ("pretrain", "align", "instruct")
RED = encode_image(Image.new("RGB", (16, 16), "red"))


def dataset(folder: Path, kind: str, image: bytes | None = RED, stored_as: str | None = None) -> Path:
    record: dict[str, Any] = {"id": "0", "text": "a cat", "source": "test"}
    if kind != "text":
        record |= {"image": image, "width": image and 16, "height": image and 16}
    write_manifest(folder, stored_as or kind, [write_records(folder, "data/part-00000.parquet", kind, [record])])
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "runs")


def test_the_usual_shares_are_the_papers() -> None:
    shares = {stage: {name: sample.share for name, (_, sample) in stage_samples(stage).items()} for stage in STAGES}
    assert {name: share for name, share in shares["pretrain"].items() if name != "questions"} == {
        "text": 5,
        "caption": 5,
        "interleaved": 2,
    }
    assert shares["align"] == {"caption": 1}
    assert shares["instruct"] == {"composition": 2, "edit": 2, "t2i": 1}


def test_kinds_without_records_are_left_out_and_said(
    layout: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"text": 1.0, "interleaved": 2.0, "questions": 3.0}
    text = dataset(tmp_path / "text", "text")
    found = find_mixture("pretrain", DataConfig(text=text, weights=wanted), layout)
    assert (dict(found.weights), set(found.folders)) == ({"text": 1.0}, {"text"})
    (line,) = capsys.readouterr().err.splitlines()
    assert "no records under" in line
    assert "interleaved, questions (data.interleaved=FOLDER, data.datasets.questions=FOLDER)" in line
    assert "training on text" in line
    find_mixture("pretrain", DataConfig(text=text, weights={"text": 1}), layout)
    assert capsys.readouterr().err == ""


def test_a_folder_of_the_settings_must_be_there(layout: RunPaths, tmp_path: Path) -> None:
    text = dataset(tmp_path / "text", "text")
    for data, message in (
        (DataConfig(text=text, datasets={"questions": tmp_path / "no"}), r"data.datasets.questions: .* does not exist"),
        (DataConfig(text=text, captions=tmp_path / "no"), r"data.captions: .* does not exist"),
        (DataConfig(text=text, weights={"text": 0.0}), r"data.weights: all shares are 0"),
        (DataConfig(text=text, weights={"sculpture": 1.0}), r"data.weights.sculpture: pretrain has no such kind"),
        (DataConfig(), r"data.\w+: .* does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_mixture("pretrain", data, layout)
    with pytest.raises(DataError, match=r"unknown kind of record 'sculpture'"):
        find_mixture("pretrain", DataConfig(datasets={"sculpture": tmp_path}), layout)


def test_records_without_images_serve_where_words_are_enough(layout: RunPaths, tmp_path: Path) -> None:
    words = dataset(tmp_path / "words", "caption", image=None)
    found = find_mixture("pretrain", DataConfig(captions=words), layout)
    assert found.folders == {"text": words}
    assert find_mixture("align", DataConfig(captions=words), layout).folders == {"caption": words}
    with pytest.raises(ConfigError, match=r"data.composition: .* does not exist"):
        find_mixture("instruct", DataConfig(captions=words), layout)


def test_stages_read_the_fields_that_they_use(layout: RunPaths, tmp_path: Path) -> None:
    """Stage 2 no image, and words from compositions nothing else of them."""

    def without_target(kind: str) -> list[str]:
        """As stage 3 with a precomputed column."""
        return [name for name in RECORD_KINDS[kind].schema.names if name != RECORD_KINDS[kind].target]

    pairs = dataset(tmp_path / "pairs", "caption")
    (aligned,) = find_mixture("align", DataConfig(captions=pairs), layout).open().values()
    assert aligned[0] == {"id": "0", "text": "a cat"}
    shown = find_mixture("instruct", DataConfig(captions=pairs), layout).open()["t2i"][0]
    assert shown == {"id": "0", "text": "a cat", "image": RED}
    tuned = find_mixture("instruct", DataConfig(captions=pairs), layout)
    assert tuned.open(fields=without_target)["t2i"][0] == {"id": "0", "text": "a cat"}
    composed = write_dataset(tmp_path / "composed", "composition", records("composition", 1))
    tuned = find_mixture("instruct", DataConfig(composition=composed), layout)
    whole = set(RECORD_KINDS["composition"].schema.names)
    assert set(tuned.open(fields=without_target)["composition"][0]) == whole - {"image"}
    served = find_mixture("pretrain", DataConfig(composition=composed), layout).open()
    assert set(served["text"][0]) == {"id", "caption"}
    assert set(served["caption"][0]) == {"id", "caption", "image"}
    assert set(served["interleaved"][0]) == whole


@pytest.mark.parametrize("place", ["settings", "usual"])
def test_a_new_kind_is_one_entry_of_the_table(
    place: str, layout: RunPaths, tmp_path: Path, tiny_processor: KosmosGProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixture, planner, collate and contact sheet know it from there."""
    kind = RecordKind(
        RECORD_KINDS["caption"].schema,
        images=("image",),
        samples={"pretrain": SampleKind(share=3, words=24, images=1, needs_image=True, template="caption")},
    )
    monkeypatch.setitem(RECORD_KINDS, "riddles", kind)
    if place == "settings":
        data = DataConfig(datasets={"riddles": dataset(tmp_path / "riddles", "riddles")})
    else:
        data = DataConfig()
        dataset(layout.dataset("riddles"), "riddles")
    found = find_mixture("pretrain", data, layout)
    assert found.weights == {"riddles": 3.0}
    assert set(found.fingerprint()) == {"riddles"}
    record = found.open()["riddles"][0]
    batch = PretrainCollate(tiny_processor)([(SimpleNamespace(source="riddles", seed=1), record)])
    assert batch["pixel_values"].shape[0] == 1
    cost = stage_cost("pretrain", KosmosGConfig.tiny(), STABLE_DIFFUSION, found.weights)
    assert cost.flops == stage_cost("pretrain", KosmosGConfig.tiny(), STABLE_DIFFUSION, {"caption": 1}).flops
    assert (np.asarray(contact_sheet([record], "riddles")) == (255, 0, 0)).all(axis=-1).any()
