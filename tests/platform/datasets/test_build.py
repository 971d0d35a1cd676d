"""Building datasets on Ray: nothing is lost, workers do not matter, a stopped build goes on, a change rebuilds what it
touches."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, EntitySpans, Rejection, Sample, Span
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.sources.base import Item, ReadyRow, SourceRow
from kosmosg.data.sources.caption_table import CaptionTable
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg.errors import ConfigError, DataError
from kosmosg.toyworld.source import SceneReader
from kosmosg_platform.config import validate
from kosmosg_platform.datasets.build import BuildResult, BuildSettings, build
from kosmosg_platform.datasets.dataset import RecordDataset, read_manifest
from kosmosg_platform.datasets.steps import BuildConfig, PipelineStep
from kosmosg_platform.progress import Progress

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Teller:
    """Collects what a build says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def world(folder: Path, scenes: int = 60, **given: Any) -> BuildResult:
    config = BuildConfig(source={"use": "toyworld", "scenes": scenes, "shard_rows": 10})
    source = config.opened_source()
    steps, settings = config.pipeline_steps(source), config.settings(source)
    reader = source.open(None)["composition"]
    shaped = BuildSettings(steps, config.compose, settings)
    return build(folder, reader, shaped, **{"say": Teller()} | given)


# Steps for photos that need no weights and no opencv: they say what the tests want to see.
class Caption:
    name = "caption 1"

    def __call__(self, samples: Sequence[Sample]) -> list[str | Rejection]:
        named = (sample.hints["folder"] for sample in samples)
        return [Rejection("no-caption", "the folder is called mute") if n == "mute" else f"a {n}" for n in named]


class Entities:
    name = "entities 1"

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans | Rejection]:
        if self.trap.exists() and any(sample.hints["folder"] == "crash" for sample in samples):
            raise RuntimeError("out of memory")
        dropped = [Rejection("duplicate", "twice")]
        return [EntitySpans([Span(s.caption[2:], 2, len(s.caption))], dropped) for s in samples]


class Masks:
    name = "masks 1"

    def __call__(self, samples: Sequence[Sample]) -> list[list[EntityMask]]:
        answers = []
        for sample in samples:
            probability = np.zeros((sample.image.height, sample.image.width), dtype=np.uint8)
            if sample.hints["folder"] != "empty":
                probability[4:12, 4:12] = 255
            answers.append([EntityMask(probability)])
        return answers


def photos(
    folder: Path, source: Path, settings: str = "1", shaping: Mapping[str, Any] = {}, **given: Any
) -> BuildResult:
    stages = [
        PipelineStep("caption", Caption, 4, "caption"),
        PipelineStep("entities", partial(Entities, source / "trap"), 4, "entities"),
        PipelineStep("masks", Masks, 4, "masks", actors=(1, 1)),  # one step as an actor, as a model would be
    ]
    reader = ImageFolderReader(source)
    options = ComposeOptions(dilate=0.0)
    shaped = BuildSettings(stages, options, {"settings": settings}, shard_rows=4, chunk_rows=2, **shaping)
    return build(folder, reader, shaped, **{"say": Teller()} | given)


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def album(source: Path) -> None:
    for index, name in enumerate(["cat", "dog", "mute", "empty", "crash", "boot", "can", "vase"]):
        photo(source / name / f"{index}.png", index)
    (source / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("data/*.parquet"))}


def quarantine(folder: Path) -> dict[str, tuple[str, str]]:
    rows = [row for path in folder.glob("quarantine/*.parquet") for row in pq.read_table(path).to_pylist()]
    return {row["id"]: (row["stage"], row["reason"]) for row in rows}


def test_every_row_becomes_a_record_or_a_refusal(tmp_path: Path) -> None:
    album(tmp_path / "photos")
    (tmp_path / "photos" / "trap").touch()
    result = photos(tmp_path / "set", tmp_path / "photos")
    records = {record["id"]: record for record in RecordDataset(tmp_path / "set", kind="composition")}
    assert sorted(records) == ["boot/5.png", "can/6.png", "cat/0.png", "dog/1.png", "vase/7.png"]
    assert quarantine(tmp_path / "set") == {
        "cat/broken.jpg": ("decode", "unreadable"),
        "mute/2.png": ("caption", "no-caption"),
        "crash/4.png": ("entities", "unexpected-RuntimeError"),
        "empty/3.png": ("compose", "no-entity"),
    }
    assert (result.rows, result.refused) == (5, 4)
    assert result.entities_left_out["empty-mask"] == 1
    manifest = read_manifest(tmp_path / "set")
    assert manifest["rows"] == 5
    assert manifest["quarantine"]["rows"] == 4
    assert manifest["annotators"] == {"captioner": "caption 1", "entity_finder": "entities 1", "segmenter": "masks 1"}
    assert records["cat/0.png"]["caption"] == "a cat"
    assert records["cat/0.png"]["segmenter"] == "masks 1"


def test_unexpected_refusals_get_another_chance(tmp_path: Path) -> None:
    album(tmp_path / "photos")
    trap = tmp_path / "photos" / "trap"
    trap.touch()
    photos(tmp_path / "set", tmp_path / "photos")
    trap.unlink()
    again = photos(tmp_path / "set", tmp_path / "photos")
    assert again.built_shards == 1
    assert "crash/4.png" not in quarantine(tmp_path / "set")
    assert photos(tmp_path / "set", tmp_path / "photos").built_shards == 0


def test_a_new_photo_or_setting_rebuilds_what_it_touches(tmp_path: Path) -> None:
    album(tmp_path / "photos")
    first = photos(tmp_path / "set", tmp_path / "photos")
    before = files(tmp_path / "set")
    photo(tmp_path / "photos" / "duck" / "9.png", 9)
    second = photos(tmp_path / "set", tmp_path / "photos")
    assert second.built_shards == 1
    assert second.rows == first.rows + 1
    after = files(tmp_path / "set")
    assert sum(before.get(name) != data for name, data in after.items()) == 1
    third = photos(tmp_path / "set", tmp_path / "photos", settings="2")
    assert third.kept_shards == 0
    assert files(tmp_path / "set") == after  # the same records, since only a name changed


def test_a_photo_that_is_gone_is_gone(tmp_path: Path) -> None:
    album(tmp_path / "photos")
    photos(tmp_path / "set", tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "broken.jpg").unlink()
    (tmp_path / "photos" / "can" / "6.png").unlink()
    photos(tmp_path / "set", tmp_path / "photos")
    assert "can/6.png" not in {record["id"] for record in RecordDataset(tmp_path / "set")}
    assert "cat/broken.jpg" not in quarantine(tmp_path / "set")


def test_a_shard_that_is_gone_is_gone(tmp_path: Path) -> None:
    album(tmp_path / "photos")
    photos(tmp_path / "set", tmp_path / "photos")
    shards = sorted(files(tmp_path / "set"))
    lost = pq.read_table(tmp_path / "set/.listing" / shards[0])["key"].to_pylist()
    for name in lost:
        (tmp_path / "photos" / name).unlink()
    result = photos(tmp_path / "set", tmp_path / "photos")
    assert result.built_shards == 0
    found = {record["id"] for record in RecordDataset(tmp_path / "set")}
    assert found.isdisjoint(lost)
    assert len(found) == result.rows == read_manifest(tmp_path / "set")["rows"]


def test_workers_do_not_matter(tmp_path: Path) -> None:
    """One worker at a time or as many as there are: the same bytes, the same manifest."""
    from ray.data import DataContext, ExecutionResources

    world(tmp_path / "many")
    context = DataContext.get_current().copy()
    context.execution_options.resource_limits = ExecutionResources(cpu=1)
    with DataContext.current(context):
        world(tmp_path / "one")
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert len(files(tmp_path / "one")) == 6
    assert (tmp_path / "many/manifest.json").read_bytes() == (tmp_path / "one/manifest.json").read_bytes()


def test_a_stopped_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(shown: Progress, done: int, state: str) -> None:
        if done > 4:
            raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "update", stop)  # the driver dies when it tells its progress
        with pytest.raises(Stop):
            world(tmp_path / "set", scenes=100)
    with pytest.raises(DataError, match="not finished"):
        RecordDataset(tmp_path / "set")
    (tmp_path / "set/data/.part-00001.parquet.1-1.tmp").write_bytes(b"half a shard of a writer that was killed")
    # Two of the shards are lost again: one without its receipt, one with a damaged file.
    receipts = sorted((tmp_path / "set/.receipts").glob("*.json"))
    receipts[0].unlink()
    (tmp_path / "set/data" / f"{receipts[1].stem}.parquet").write_bytes(b"")
    result = world(tmp_path / "set", scenes=100)
    assert result.built_shards + result.kept_shards == 10
    assert 0 < result.kept_shards <= 8
    world(tmp_path / "straight", scenes=100)
    assert files(tmp_path / "set") == files(tmp_path / "straight")
    assert (tmp_path / "set/manifest.json").read_bytes() == (tmp_path / "straight/manifest.json").read_bytes()
    assert not list((tmp_path / "set").rglob("*.tmp"))


def test_a_finished_build_does_nothing_and_needs_no_cluster(tmp_path: Path) -> None:
    world(tmp_path / "set")
    stamp = (tmp_path / "set/manifest.json").stat().st_mtime_ns

    def no_cluster() -> None:
        raise AssertionError("Ray was started for nothing")

    result = world(tmp_path / "set", start_ray=no_cluster)
    assert (result.built_shards, result.kept_shards, result.rate) == (0, 6, 0.0)
    assert (tmp_path / "set/manifest.json").stat().st_mtime_ns == stamp


def test_a_larger_world_keeps_the_smaller_one(tmp_path: Path) -> None:
    world(tmp_path / "set", scenes=60)
    result = world(tmp_path / "set", scenes=80)
    assert (result.built_shards, result.kept_shards) == (2, 6)
    result = world(tmp_path / "set", scenes=80, limit=30)
    assert (result.rows, result.kept_shards) == (30, 3)
    assert len(files(tmp_path / "set")) == 3


def test_too_many_refusals_are_not_published(tmp_path: Path) -> None:
    album(tmp_path / "photos")
    with pytest.raises(DataError, match=r"3 of 9 rows were refused.*max_refused=0.1.*such as: .*quarantine"):
        photos(tmp_path / "set", tmp_path / "photos", shaping={"max_refused": 0.1})
    with pytest.raises(DataError, match="not finished"):
        RecordDataset(tmp_path / "set")
    assert photos(tmp_path / "set", tmp_path / "photos", shaping={"max_refused": 0.5}).built_shards == 0


def test_captions_go_straight_to_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("".join(f"caption number {i}\n" for i in range(250)))
    (tmp_path / "b.txt").write_bytes(b"good\n\xff\xff\n\n")
    (tmp_path / "c.txt").write_text("")
    reader = CaptionTable(kind="caption", with_images=False).open(str(tmp_path))["caption"]
    result = build(tmp_path / "set", reader, BuildSettings(), say=Teller())
    records = list(RecordDataset(tmp_path / "set", kind="caption"))
    assert sorted(record["text"] for record in records) == sorted(
        [f"caption number {i}" for i in range(250)] + ["good"]
    )
    assert result.reasons == {"read: encoding": 1}
    assert re.search(r"caption: \d/\d chunks, \d+ rows, [\d,.]+ rows/s, 1 refused, took", capsys.readouterr().err)


def test_the_manifest_says_what_was_built(tmp_path: Path) -> None:
    world(tmp_path / "set")
    manifest = json.loads((tmp_path / "set/manifest.json").read_text())
    assert manifest["kind"] == "composition"
    assert manifest["source"] == {"layout": "scenes of the toy world", "seed": 0}
    assert manifest["config"]["steps"][0]["use"] == "toyworld_captions"
    assert manifest["annotators"]["segmenter"] == "toyworld painter"
    assert sum(shard["rows"] for shard in manifest["shards"]) == 60
    for shard in manifest["shards"]:
        assert (tmp_path / "set" / shard["name"]).stat().st_size == shard["bytes"]


def test_filters_stand_anywhere_and_what_they_turn_down_is_in_quarantine(tmp_path: Path) -> None:
    album(tmp_path / "photos")
    steps = [
        {"use": "image_size", "min_side": 17},
        {"use": "sidecar"},
        {"use": "caption_length", "min_words": 9},
        {"use": "nouns"},
        {"use": "grabcut"},
    ]
    for steps_of, stage, reason in ((steps, "image_size", "too-small"), (steps[1:], "caption_length", "short-caption")):
        config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps_of})
        source = config.opened_source()
        reader = source.open(str(tmp_path / "photos"))["composition"]
        shaped = BuildSettings(config.pipeline_steps(source), config.compose, config.settings(source))
        with pytest.raises(DataError, match=reason):
            build(tmp_path / stage, reader, shaped, say=Teller())
        told = quarantine(tmp_path / stage)
        assert set(told.values()) == {(stage, reason), ("decode", "unreadable")}


def test_a_reader_of_scenes_is_small_enough_to_travel() -> None:
    import pickle

    assert len(pickle.dumps(SceneReader(8000))) < 500


def test_gpus_that_are_not_there_are_told(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "cat" / "1.png", 1)
    stages = [PipelineStep("caption", Caption, 4, "caption", actors=(2, 2), gpus=64)]
    with pytest.raises(ConfigError, match=r"build\.steps\.0\.actors: 2 workers with 64 GPUs each are asked for"):
        build(tmp_path / "set", ImageFolderReader(tmp_path / "photos"), BuildSettings(stages), say=Teller())


class Mixed(ImageFolderReader):
    """Samples, and a finished record among them."""

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        yield from super().read(items)
        yield ReadyRow({"id": "ready"})


def test_a_reader_of_samples_that_gives_finished_records_is_told(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "cat" / "1.png", 1)
    for actors in ((0, 0), (1, 1)):
        steps = [PipelineStep("caption", Caption, 4, "caption", actors=actors)]
        with pytest.raises(DataError, match="'ready' came as a finished record from a reader that gives samples"):
            build(tmp_path / "set", Mixed(tmp_path / "photos"), BuildSettings(steps), say=Teller())


def test_a_wrong_model_is_told_before_anything_starts(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "cat" / "1.png", 1)
    steps = [{"use": "blip2", "model": str(tmp_path / "absent")}, {"use": "nouns"}, {"use": "grabcut"}]
    config = validate(BuildConfig, {"source": {"use": "image_folder"}, "steps": steps})
    source = config.opened_source()
    reader = source.open(str(tmp_path / "photos"))["composition"]
    shaped = BuildSettings(config.pipeline_steps(source), config.compose, config.settings(source))
    with pytest.raises(DataError, match="neither a local model folder"):
        build(tmp_path / "set", reader, shaped, say=Teller())
