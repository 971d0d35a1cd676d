"""What models have said is kept: a build asks again only for what has changed."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, EntitySpans, Rejection, Sample, Span
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.filters.caption_length import CaptionLengthFilter
from kosmosg.data.kept_answers import answers_table, read_answers
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg_platform.datasets.build import BuildResult, BuildSettings, build
from kosmosg_platform.datasets.dataset import read_manifest
from kosmosg_platform.datasets.steps import FilterStep, PipelineStep


class Asked:
    """An annotator that writes down for which samples it was asked."""

    name = "asked"

    def __init__(self, field: str, log: Path) -> None:
        self.field, self.log = field, log

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        with self.log.open("a") as file:
            file.writelines(f"{self.field} {sample.id}\n" for sample in samples)
        return [self.answer(sample) for sample in samples]

    def answer(self, sample: Sample) -> Any:
        if self.field == "caption":
            if sample.hints["folder"] == "fault" and not self.log.with_name("mended").exists():
                raise RuntimeError("out of memory")
            return "" if sample.hints["folder"] == "mute" else f"a {sample.hints['folder']}"
        if self.field == "entities":
            return EntitySpans([Span(sample.caption[2:], 2, len(sample.caption))], [])
        mask = np.zeros((16, 16), np.uint8)
        mask[4:12, 4:12] = 255
        return [EntityMask(mask)]


def steps(log: Path) -> list[PipelineStep]:
    return [
        PipelineStep(field, partial(Asked, field, log), 4, field, key=field * 4, keep=field != "masks", actors=(1, 1))
        for field in ("caption", "entities", "masks")
    ]


def run(folder: Path, given: Sequence[PipelineStep], plain: Any, retry: str = "") -> tuple[BuildResult, list[str]]:
    """A build, and for which fields of which samples an annotator was asked in it."""
    log = folder / "asked"
    log.unlink(missing_ok=True)
    shaped = BuildSettings(
        tuple(given), ComposeOptions(dilate=0.0), {"plain": plain}, shard_rows=4, chunk_rows=2, retry=retry
    )
    result = build(folder / "set", ImageFolderReader(folder / "photos"), shaped)
    return result, log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(["cat", "dog", "fault", "boot", "can", "vase"]):
        path = tmp_path / "photos" / name / f"{number}.png"
        path.parent.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path


@pytest.mark.usefixtures("ray_cluster")
def test_only_what_has_changed_is_asked_for(folder: Path) -> None:
    given = steps(folder / "asked")
    result, asked = run(folder, given, 1)
    assert (result.rows, result.refused) == (5, 1)
    assert len([line for line in asked if line.startswith("masks")]) == 5
    # Another segmenter: captions and entities are known, but for the row that failed by a fault of the machine.
    (folder / "mended").touch()
    result, asked = run(folder, [*given[:2], replace(given[2], key="other")], 2)
    assert (result.rows, result.refused) == (6, 0)
    assert sorted(line for line in asked if not line.startswith("masks")) == [
        "caption fault/2.png",
        "entities fault/2.png",
    ]
    assert len([line for line in asked if line.startswith("masks")]) == 6
    # A filter behind the captioner: nothing is asked for anew but the masks of what is left.
    filtered = PipelineStep("caption_length", partial(FilterStep, "caption_length", CaptionLengthFilter(1, 1)), 64)
    with pytest.raises(Exception, match="long-caption"):
        run(folder, [given[0], filtered, *given[1:]], 3)
    assert not (folder / "asked").exists()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("word", ["decode", "decode: unreadable"])
def test_a_reason_is_tried_again_and_the_rest_is_not(folder: Path, word: str) -> None:
    given = steps(folder / "asked")
    (folder / "mended").touch()
    good = (folder / "photos/cat/0.png").read_bytes()
    broken = folder / "photos/cat/0.png"
    stamp = broken.stat()
    broken.write_bytes(good[:50] + bytes(len(good) - 50))
    os.utime(broken, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a file system that comes back late would look
    first, _ = run(folder, given, 1)
    assert first.reasons == {"decode: unreadable": 1}
    manifest = read_manifest(folder / "set")
    assert manifest["counts"] == {"read": 6, "written": 5, "filtered": 0, "quarantined": 1}
    broken.write_bytes(good)
    os.utime(broken, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again, asked = run(folder, given, 1)
    assert (again.built_shards, asked) == (0, [])
    assert run(folder, given, 1, retry="caption")[0].built_shards == 0
    retried, asked = run(folder, given, 1, retry=word)
    assert (retried.rows, retried.refused) == (6, 0)
    assert [line for line in asked if line.startswith("caption")] == ["caption cat/0.png"]
    assert pq.read_table(folder / "set/data").num_rows == 6


@pytest.mark.parametrize(
    ("field", "answer"),
    [
        ("caption", "a cat"),
        ("entities", EntitySpans([Span("cat", 2, 5)], [Rejection("duplicate", "twice")])),
        ("caption", Rejection("no-caption", "there is none")),
        ("", None),
    ],
)
def test_kept_answers_come_back_as_they_were(field: str, answer: Any) -> None:
    answers, name = read_answers(answers_table(field, {"a": answer}, "who"))
    assert (answers, name) == ({"a": answer}, "who")


def test_kept_masks_come_back_as_they_were() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    answers, _ = read_answers(answers_table("masks", {"a": [EntityMask(mask)]}, "who"))
    (cut,) = answers["a"]
    assert np.array_equal(cut.probability, mask)
