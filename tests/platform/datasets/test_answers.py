"""What models have said is kept: a build asks again only for what has changed."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, EntitySpans, Rejection, Sample, Span
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.filters.caption_length import CaptionLengthFilter
from kosmosg.data.kept_answers import answers_table, read_answers
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg_platform.datasets.answers import place_of
from kosmosg_platform.datasets.build import BuildResult, BuildSettings, build
from kosmosg_platform.datasets.dataset import read_manifest
from kosmosg_platform.datasets.kept_steps import KeptAnswers, kept_bytes, tidy_answers
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
        tuple(given),
        ComposeOptions(dilate=0.0),
        {"plain": plain},
        shard_rows=4,
        chunk_rows=2,
        keep_answers=2,
        retry=retry,
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
    chosen = steps(folder / "asked")
    result, asked = run(folder, chosen, 1)
    assert (result.rows, result.refused) == (5, 1)
    assert len([line for line in asked if line.startswith("masks")]) == 5
    # Another segmenter: captions and entities are known, but for the row that failed by a fault of the machine.
    (folder / "mended").touch()
    result, asked = run(folder, [*chosen[:2], replace(chosen[2], key="other")], 2)
    assert (result.rows, result.refused) == (6, 0)
    assert sorted(line for line in asked if not line.startswith("masks")) == [
        "caption fault/2.png",
        "entities fault/2.png",
    ]
    assert len([line for line in asked if line.startswith("masks")]) == 6
    # A filter behind the captioner: nothing is asked for anew but the masks of what is left.
    filtered = PipelineStep("caption_length", partial(FilterStep, "caption_length", CaptionLengthFilter(1, 1)), 64)
    with pytest.raises(Exception, match="long-caption"):
        run(folder, [chosen[0], filtered, *chosen[1:]], 3)
    assert not (folder / "asked").exists()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("word", ["decode", "decode: unreadable"])
def test_a_reason_is_tried_again_and_the_rest_is_not(folder: Path, word: str) -> None:
    chosen = steps(folder / "asked")
    (folder / "mended").touch()
    good = (folder / "photos/cat/0.png").read_bytes()
    broken = folder / "photos/cat/0.png"
    stamp = broken.stat()
    broken.write_bytes(good[:50] + bytes(len(good) - 50))
    os.utime(broken, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a file system that comes back late would look
    first, _ = run(folder, chosen, 1)
    assert first.reasons == {"decode: unreadable": 1}
    manifest = read_manifest(folder / "set")
    assert manifest["counts"] == {"read": 6, "written": 5, "filtered": 0, "quarantined": 1}
    broken.write_bytes(good)
    os.utime(broken, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again, asked = run(folder, chosen, 1)
    assert (again.built_shards, asked) == (0, [])
    assert run(folder, chosen, 1, retry="caption")[0].built_shards == 0
    retried, asked = run(folder, chosen, 1, retry=word)
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


CONTENT, OTHER = "c" * 32, "d" * 32


def answered(folder: Path, step: PipelineStep, contents: Sequence[str] = (CONTENT,)) -> list[Path]:
    """Files of a step's answers, 10 bytes each, as a build would have left them."""
    place = place_of(folder, step)
    place.mkdir(parents=True, exist_ok=True)
    for content in contents:
        (place / f"{content}.arrow").write_bytes(bytes(10))
    return [place / f"{content}.arrow" for content in contents]


def step(key: str, name: str = "caption") -> PipelineStep:
    return PipelineStep(name, Asked, 4, name, key=key * 16, keep=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.sampled_from("abcde"), min_size=1, max_size=9), keep=st.integers(1, 4))
def test_the_answers_of_the_last_settings_stay_and_older_ones_go(order: list[str], keep: int, tmp_path: Path) -> None:
    """Whatever settings builds had in turn; a step that did not change keeps its answers throughout."""
    folder = Path(mkdtemp(dir=tmp_path))
    same = answered(folder, step("f", "entities"))[0]
    for key in order:
        answered(folder, step(key))
        kept = tidy_answers(folder, [step(key), step("f", "entities")], keep, lambda: [CONTENT])
    last = list(dict.fromkeys(reversed(order)))[:keep]
    assert {key for key in "abcde" if place_of(folder, step(key)).exists()} == set(last)
    assert same.exists()
    assert kept.bytes == kept_bytes(folder) == 10 * (len(last) + 1)
    assert tidy_answers(folder, [step(order[-1]), step("f", "entities")], keep, None) == KeptAnswers(kept.bytes)


def test_answers_for_rows_that_are_gone_go_and_nothing_else_does(tmp_path: Path) -> None:
    here, gone = answered(tmp_path, step("a"), [CONTENT, OTHER])
    mine = [here.with_name("notes.txt"), here.parent.parent / "notes" / f"{OTHER}.arrow"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("of somebody")
    unfinished = here.with_name(f"{OTHER}.partial")
    unfinished.touch()
    assert tidy_answers(tmp_path, [step("a")], 2, None).removed == 0  # nothing was built: nobody looked at the rows
    assert gone.exists()
    assert tidy_answers(tmp_path, [step("a")], 2, lambda: [CONTENT]).removed == 10
    assert here.exists()
    assert not gone.exists()
    assert not unfinished.exists()
    assert all(path.exists() for path in mine)
    (tmp_path / ".answers/used.json").write_text("{")
    assert tidy_answers(tmp_path, [step("a")], 2, lambda: [CONTENT]).bytes == kept_bytes(tmp_path) > 0


def test_a_dataset_without_models_gets_no_folder_of_answers(tmp_path: Path) -> None:
    light = PipelineStep("caption", Asked, 4, "caption")
    assert tidy_answers(tmp_path, [light], 2, lambda: []) == KeptAnswers()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_going_back_asks_nobody_and_what_is_old_is_removed(folder: Path) -> None:
    (folder / "mended").touch()
    first = steps(folder / "asked")
    second, third = ([replace(first[0], key=key * 3), *first[1:]] for key in ("second", "third"))
    names = [place_of(folder / "set", chosen[0]) for chosen in (first, second, third)]
    run(folder, first, 1)
    both, asked = run(folder, second, 2)
    assert len([line for line in asked if line.startswith("caption")]) == 6
    assert (both.answers.removed, [name.exists() for name in names]) == (0, [True, True, False])
    assert both.answers.bytes == sum(p.stat().st_size for p in (folder / "set/.answers").rglob("*.arrow"))
    back, asked = run(folder, first, 1)
    assert not [line for line in asked if line.startswith("caption")]
    # Of the last two settings one is the third; a photo that is gone takes its answers with it.
    (folder / "photos/cat/0.png").unlink()
    last, _ = run(folder, third, 3)
    assert [name.exists() for name in names] == [True, False, True]
    assert last.answers.removed > 0
    kept = {row["id"] for path in names[2].glob("*.arrow") for row in feather.read_table(path).to_pylist()}
    assert len(kept) == last.rows == 5
    assert back.rows == 6
