"""Statistics say what is in a dataset, of a sample whose size is bounded whatever the dataset's is."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kosmosg.data.image_bytes import decode_mask
from kosmosg.errors import DataError
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.datasets.statistics import BINS, SampleLimits, distribution, measure
from tests.made_records import records, rejections, write_dataset

KINDS = ("composition", "edit", "caption", "text", "interleaved")


def test_a_small_dataset_is_measured_whole(tmp_path: Path) -> None:
    """Every figure equals what a loop over all records gives."""
    made = records("composition", 40)
    found = measure(write_dataset(tmp_path, "composition", made, shards=3))
    assert found["based_on"]["records"] == found["records"] == 40
    expected: dict[str, list[float]] = {
        "image_width": [r["width"] for r in made],
        "image_height": [r["height"] for r in made],
        "image_aspect": [r["width"] / r["height"] for r in made],
        "caption_words": [len(r["caption"].split()) for r in made],
        "entities": [len(r["entities"]) for r in made],
        "entity_score": [e["score"] for r in made for e in r["entities"]],
        "entity_area": [decode_mask(e["mask"]).sum() / (r["width"] * r["height"]) for r in made for e in r["entities"]],
    }
    assert set(found["distributions"]) == set(expected)
    for name, values in expected.items():
        told = found["distributions"][name]
        assert told["count"] == len(values) == sum(told["counts"]) + told["beyond"]
        figures = [told[figure] for figure in ("smallest", "median", "mean", "largest")]
        assert figures == pytest.approx([min(values), np.median(values), np.mean(values), max(values)], rel=1e-5)
    words = Counter(e["text"].removeprefix("a ") for r in made for e in r["entities"])
    assert found["entity_words"] == dict(words)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_what_it_has(tmp_path: Path, kind: str) -> None:
    made = records(kind, 12)
    found = measure(write_dataset(tmp_path, kind, made, shards=2))
    images = {"text": 0, "edit": 2, "interleaved": None}.get(kind, 1)
    if images is None:
        images = sum(part["image"] is not None for record in made for part in record["parts"]) / len(made)
    widths = found["distributions"].get("image_width", {"count": 0})
    assert widths["count"] == images * len(made)
    words = {"composition": "caption_words", "edit": "instruction_words"}.get(kind, "text_words")
    assert found["distributions"][words]["count"] == len(made)
    assert ("entities" in found["distributions"]) == (kind == "composition")


@settings(max_examples=20)
@given(limit=st.integers(1, 300), shards=st.integers(1, 12), seed=st.integers(0, 5))
def test_what_is_read_is_bounded_and_the_same_every_time(limit: int, shards: int, seed: int, many_shards: Path) -> None:
    """At most so many shards, and not more records than asked for but by one row group of each shard."""
    limits = SampleLimits(records=limit, shards=shards, seed=seed)
    found = measure(many_shards, limits)
    used = found["based_on"]
    total = found["records"]
    assert used["shards"] <= shards
    if limit < total:
        assert used["records"] <= limit + used["shards"] * 257
    assert used["records"] >= min(limit, used["shards"])
    assert measure(many_shards, limits) == found


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("many"), "text", records("text", 1200), shards=30)


def test_shards_that_are_not_chosen_are_not_even_opened(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "text", records("text", 400), shards=20)
    limits = SampleLimits(records=50, shards=4)
    before = measure(folder, limits)
    needed = 0
    for path in sorted((folder / "data").glob("*.parquet")):
        held = path.read_bytes()
        path.unlink()
        try:
            assert measure(folder, limits) == before
        except DataError:
            path.write_bytes(held)
            needed += 1
    assert needed == before["based_on"]["shards"] == 4


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    """Row groups of one large image each: reading stops at the budget, not at the number of records."""
    folder = write_dataset(tmp_path, "edit", records("edit", 50))
    (path,) = (folder / "data").glob("*.parquet")
    held = pq.read_table(path)
    pq.write_table(held, path, row_group_size=1)
    budget = pq.ParquetFile(path).metadata.row_group(0).total_byte_size * 5
    found = measure(folder, SampleLimits(bytes=budget))
    assert 1 <= found["based_on"]["records"] < 25


@pytest.mark.parametrize("damaged", ["image", "mask"])
def test_what_cannot_be_decoded_is_left_out_of_its_distribution_only(tmp_path: Path, damaged: str) -> None:
    kind = "composition" if damaged == "mask" else "edit"
    made = records(kind, 10)
    if damaged == "mask":
        made[3]["entities"][0]["mask"] = b"no mask"
    else:
        made[3]["before"] = b"<html>"
    found = measure(write_dataset(tmp_path, kind, made))["distributions"]
    if damaged == "mask":
        assert found["entity_area"]["count"] == found["entity_score"]["count"] - 1
    else:
        assert found["image_width"]["count"] == 19
        assert found["caption_words"]["count"] == 10


@given(
    values=st.lists(
        st.one_of(st.integers(0, 10**6).map(float), st.floats(-1e6, 1e6, allow_subnormal=False)), min_size=1
    ),
    name=st.sampled_from(["entity_score", "caption_words", "image_aspect"]),
)
def test_a_histogram_counts_everything_once(values: list[float], name: str) -> None:
    told = distribution(name, values)
    assert sum(told["counts"]) + told["beyond"] == len(values)
    assert len(told["edges"]) == len(told["counts"]) + 1 <= BINS + 2
    assert told["edges"] == sorted(told["edges"])
    assert told["beyond"] <= len(values) / 100 + 1


def test_counts_and_reasons_are_the_manifests(tmp_path: Path) -> None:
    rejected = rejections({"decode: unreadable": 4, "blur: blurred": 3})
    found = measure(
        write_dataset(tmp_path, "composition", records("composition", 5), rejected=rejected, filters=["blur"])
    )
    assert found["counts"] == {"read": 12, "written": 5, "filtered": 3, "quarantined": 4}
    assert found["refused"] == {"decode: unreadable": 4, "blur: blurred": 3}


@pytest.mark.parametrize("shards", [1, 4])
def test_ids_are_read_alone_and_found_again(tmp_path: Path, shards: int) -> None:
    dataset = RecordDataset(write_dataset(tmp_path, "text", records("text", 600), shards=shards))
    order = [599, 0, 7, 7, 300, 151]
    assert dataset.read_ids(order) == [dataset[index]["id"] for index in order]
    for index in (0, 299, 300, 599):
        place: Any = dataset.find(dataset[index]["id"])
        assert place[0] == index
        held = pq.read_table(tmp_path / place[1]).slice(place[2], 1).to_pylist()[0]
        assert held == dataset[index]
    assert dataset.find("nobody") is None
