"""Hash lists as a user makes them: copies are found, and evaluation images stay out of a dataset."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.build_dataset import run as build
from jobs.experiment import load
from jobs.hash_list import run
from kosmosg_platform.datasets.dataset import RecordDataset

pytestmark = pytest.mark.usefixtures("ray_cluster")


def photo(path: Path, seed: int, quality: int = 95, side: int = 96) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC)
    image.resize((side, side)).save(path, quality=quality)


def test_copies_and_evaluation_images_are_left_out(tmp_path: Path) -> None:
    for number in range(6):
        photo(tmp_path / "photos" / "cat" / f"{number}.jpg", number)
    photo(tmp_path / "photos" / "dog" / "copy-of-2.jpg", 2, quality=80, side=88)
    (tmp_path / "photos" / "dog" / "broken.jpg").write_bytes(b"no image")
    photo(tmp_path / "evaluation" / "one.jpg", 4, quality=70)
    output = f"output={tmp_path}/out"
    mine = run(load("hash_list", "photos", [f"source={tmp_path}/photos", f"dest={tmp_path}/mine", output]))
    assert (mine.hashed, mine.refused) == (7, 1)
    assert mine.duplicates.table.column("key").to_pylist() == ["dog/copy-of-2.jpg"]
    photo(tmp_path / "photos" / "cat" / "new.jpg", 9)
    again = run(load("hash_list", "photos", [f"source={tmp_path}/photos", f"dest={tmp_path}/mine", output]))
    assert (again.hashed, again.refused) == (8, 0)  # the broken one was told when its part was made
    run(load("hash_list", "photos", [f"source={tmp_path}/evaluation", f"dest={tmp_path}/theirs", output]))
    steps = (
        f"build.steps=[{{use: duplicate, duplicates: {tmp_path}/mine/duplicates.parquet}}, "
        f"{{use: contaminated, hashes: {tmp_path}/theirs/hashes}}, "
        "{use: sidecar}, {use: nouns}, {use: grabcut}]"
    )
    (result,) = build(
        load(
            "build_dataset",
            "photos",
            [
                f"source={tmp_path}/photos",
                f"dest={tmp_path}/set",
                steps,
                "build.compose.max_area=1",
                "build.max_refused=0.9",
            ],
        )
    )
    assert {reason for reason in result.reasons if "compose" not in reason} == {
        "contaminated: contaminated",
        "decode: unreadable",
        "duplicate: duplicate",
    }
    kept = {record["id"] for record in RecordDataset(tmp_path / "set")}
    assert kept.isdisjoint({"cat/4.jpg", "dog/copy-of-2.jpg"})
