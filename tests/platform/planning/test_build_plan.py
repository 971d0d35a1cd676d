"""The plan of a dataset build is the arithmetic of what a pilot has measured; figures here are given, not timed."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.plan import main
from kosmosg.data.annotators.grabcut import GrabCutSegmenter
from kosmosg.data.annotators.nouns import NounFinder
from kosmosg.data.annotators.sidecar import SidecarCaptioner
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg.errors import ConfigError, DataError
from kosmosg_platform.datasets.build import BuildSettings, build
from kosmosg_platform.datasets.dataset import read_manifest
from kosmosg_platform.datasets.spent import COMPOSE, FINISH, READ, WRITE, Spent
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.planning.build_plan import BuildPlanConfig, Pilot, plan_build, read_pilot, render_build
from kosmosg_platform.storage import read_json

SETTINGS = {"steps": [{"use": "blip2", "model": "a"}], "compose": {"threshold": 0.5}}


def pilot(**costs: Spent) -> Pilot:
    """100 rows: 1 s of reading each, 10 s of captions of the 80 that come there, a second of each of the rest."""
    usual = {
        READ: Spent(100, 100, 100.0, 100.0, "a CPU"),
        "image_size": Spent(100, 100, 100.0, 100.0, "a CPU"),
        "caption": Spent(80, 40, 400.0, 40.0, "a GPU"),  # half of them were known
        "entities": Spent(60, 60, 60.0, 60.0, "a CPU"),
        COMPOSE: Spent(50, 50, 50.0, 50.0, "a CPU"),
        WRITE: Spent(50, 50, 50.0, 50.0, "a CPU"),
        FINISH: Spent(50, 50, 50.0, 50.0, "a CPU"),
    }
    stored = {"records": 5000, "quarantine": 500, "kept answers": 0}
    return Pilot(Path("pilot"), 100, 50, usual | costs, stored, 1.0, 1000.0, SETTINGS)


def steps(gpus: float = 1.0, actors: tuple[int, int] = (4, 4)) -> list[PipelineStep]:
    return [
        PipelineStep("image_size", None, 64),
        PipelineStep("caption", None, 16, "caption", actors=actors, cpus=1.0, gpus=gpus),
        PipelineStep("entities", None, 64, "entities"),
    ]


def planned(config: BuildPlanConfig, **given: Any) -> Any:
    return plan_build(config, pilot(), steps(**given), SETTINGS, 64)


@given(images=st.integers(100, 10**8), actors=st.integers(1, 64))
def test_time_and_storage_grow_with_the_images_and_shrink_with_the_processes(images: int, actors: int) -> None:
    config = BuildPlanConfig(images=images, nodes=8, cpus_per_node=100, gpus_per_node=8)
    plan = planned(config, actors=(1, actors))
    reading, captions, finishing = plan.parts
    rows = images / 100
    assert reading.parts == (READ, "image_size")
    assert reading.cpu_hours == pytest.approx(rows * 200 / 3600)
    # 80 rows come to the captioner, at the 10 s of those that it was asked for; what follows runs in its process.
    assert captions.parts == ("caption", "entities", COMPOSE, WRITE)
    assert captions.device == "a GPU"
    assert captions.gpu_hours == pytest.approx(rows * (800 + 60 + 50 + 50) / 3600)
    assert captions.cpu_hours == pytest.approx(rows * (80 + 60 + 50 + 50) / 3600)
    assert captions.days == pytest.approx(rows * 960 / actors / 86400)
    assert finishing.cpu_hours == pytest.approx(rows * 50 / 3600)
    assert plan.days >= max(part.days for part in plan.parts)
    assert plan.days >= sum(part.cpu_hours for part in plan.parts) / 800 / 24
    assert plan.records == pytest.approx(images / 2)
    assert plan.stored == pytest.approx({"records": 50 * images, "quarantine": 5 * images})
    assert plan.driver_bytes <= 1000 * min(images, 64 * 4096) + images * 1000
    assert plan.dollars is None


def test_what_cannot_be_held_or_was_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.gpus_per_node: the steps take 4 GPUs together, 1 node with 2"):
        planned(BuildPlanConfig(gpus_per_node=2))
    other = {**SETTINGS, "steps": [{"use": "blip2", "model": "b"}]}
    with pytest.raises(ConfigError, match=r"build\.steps\.0\.model: the pilot pilot was built with 'a', .* for 'b'"):
        plan_build(BuildPlanConfig(gpus_per_node=8), pilot(), steps(), other, 64)
    with pytest.raises(DataError, match="there is no dataset folder"):
        read_pilot(tmp_path / "none")


def test_a_price_makes_a_cost_and_the_slowest_part_is_named() -> None:
    config = BuildPlanConfig(images=10**6, nodes=2, cpus_per_node=64, gpus_per_node=8, dollars_per_node_hour=30)
    plan = planned(config)
    assert plan.dollars == pytest.approx(plan.days * 24 * 2 * 30)
    assert plan.slowest.startswith("caption")
    few = planned(BuildPlanConfig(images=10**6, cpus_per_node=2, gpus_per_node=8), gpus=0.0, actors=(16, 16))
    assert few.slowest != "caption"  # more actors than CPUs are no faster
    assert few.days >= sum(part.cpu_hours for part in few.parts) / 2 / 24
    text = "\n".join(render_build(plan, pilot(), config))
    assert f"{plan.dollars:,.2f} dollars" in text
    assert "1,000,000 rows -> 500,000 records (50.0%)" in text
    assert "dollars" not in "\n".join(render_build(few, pilot(), config))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["photos"], r"rates of a build are measured, not assumed; .*run build_dataset photos source=SOURCE limit="),
        (["photos", "train.steps=3"], r"train\.steps: a plan of a dataset build does not depend on it"),
        (["photos", "plan.imges=3"], r"plan\.imges"),
        (["photos", "plan.pilot=nowhere"], "there is no dataset folder"),
    ],
)
def test_a_mistake_is_one_sentence(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["build_dataset", *words])
    assert end.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(told, sentence)


def test_a_stage_does_not_depend_on_a_build(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["tiny", "build.chunk_rows=8"])
    assert end.value.code == 2
    assert "build.chunk_rows: a plan of the training stages does not depend on it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_build_measures_itself_and_is_planned_from_that(tmp_path: Path) -> None:
    names = ["cat", "dog", "boot", "can", "vase", "broken", "flat"]
    for number, name in enumerate(names):
        path = tmp_path / "photos" / name / f"{number}.jpg"
        path.parent.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 60, (48, 48, 3), dtype=np.uint8)
        pixels[12:36, 12:36] += 150
        Image.fromarray(pixels).save(path)
        if name == "broken":
            path.write_bytes(path.read_bytes()[:40])
    chosen = [
        PipelineStep("caption", SidecarCaptioner, 64, "caption"),
        PipelineStep("entities", NounFinder, 4, "entities", key="e" * 16, keep=True, actors=(1, 1)),
        PipelineStep("masks", GrabCutSegmenter, 64, "masks"),
    ]
    shaped = BuildSettings(chosen, ComposeOptions(dilate=0.0, threshold=0.5), SETTINGS, shard_rows=4, chunk_rows=2)
    result = build(tmp_path / "set", ImageFolderReader(tmp_path / "photos"), shaped)
    found = read_pilot(tmp_path / "set")
    reached = {part: spent.reached for part, spent in found.costs.items()}
    assert {part: spent.rows for part, spent in found.costs.items()} == reached
    assert reached[READ] == found.rows == 7
    assert reached["caption"] == reached["entities"] == reached["masks"] == 6
    assert reached[WRITE] == reached[FINISH] == found.records == result.rows
    assert all(spent.seconds > 0 and spent.device for spent in found.costs.values())
    assert found.stored["kept answers"] > result.answers.bytes > 0
    assert "costs" not in json.dumps(read_manifest(tmp_path / "set"))  # two builds have the same manifest
    plan = plan_build(BuildPlanConfig(images=700), found, chosen, SETTINGS, 2)
    assert sum(part.cpu_hours for part in plan.parts) == pytest.approx(
        100 * sum(spent.cpu for spent in found.costs.values()) / 3600
    )
    assert plan.stored["records"] == 100 * found.stored["records"]
    # A rebuild whose entities are known has no rate of its own for them.
    build(tmp_path / "set", ImageFolderReader(tmp_path / "photos"), replace(shaped, plain={"changed": 1}))
    with pytest.raises(DataError, match="no time was measured for entities"):
        read_pilot(tmp_path / "set")
    receipt = read_json(next((tmp_path / "set/.receipts").glob("part-*.json")))
    assert receipt["costs"]["entities"]["rows"] == 0
