"""From the id of a record, or of a row that was rejected, back to where it came from."""

from pathlib import Path

import pytest

from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg.errors import DataError
from kosmosg_platform.datasets.dataset import RecordDataset
from kosmosg_platform.datasets.lineage import trace_record
from kosmosg_platform.datasets.listing import write_listing
from tests.made_records import records, rejections, write_dataset


@pytest.mark.parametrize("shards", [1, 5])
def test_every_record_and_every_rejected_row_is_found_where_it_lies(tmp_path: Path, shards: int) -> None:
    made = records("composition", 20)
    rejected = rejections({"decode: unreadable": 6, "blur: blurred": 2})
    folder = write_dataset(tmp_path, "composition", made, shards, rejected)
    dataset = RecordDataset(folder)
    for number, record in enumerate(made):
        origin = trace_record(folder, record["id"])
        assert dataset[origin.index]["id"] == record["id"] == origin.id  # type: ignore[index]
        assert (origin.index, origin.shard) == (number, f"data/part-{number // -(-20 // shards):05d}.parquet")
        assert origin.rejected == {}
        facts = origin.facts()
        assert facts["origin.sha256"] == record["sha256"]
        assert facts["annotators.segmenter"] == "masks of Some/segmenter-1"
        assert facts["steps.1.prompt"] == "a photo of"
        assert facts["source.layout"] == "folder of photos"
        assert (facts.get("provenance.licence") == "CC BY 2.0") == (record["provenance"] is not None)
    for row in rejected:
        origin = trace_record(folder, row["id"])
        assert origin.index is None
        assert {**origin.rejected, "id": origin.id} == {
            name: row[name] for name in ("stage", "reason", "message", "id")
        }


def test_what_is_not_there_is_said_with_how_much_was_looked_at(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, "text", records("text", 7), rejected=rejections({"decode: encoding": 2}))
    with pytest.raises(DataError, match=r"neither .* id 'nobody', among 7 records and 2 rejected rows"):
        trace_record(folder, "nobody")
    with pytest.raises(DataError, match="there is no dataset folder"):
        trace_record(tmp_path / "absent", "nobody")


def test_images_and_captions_are_not_printed(tmp_path: Path) -> None:
    made = records("composition", 1)
    facts = trace_record(write_dataset(tmp_path, "composition", made), made[0]["id"]).facts()
    assert all(isinstance(value, str) and len(value) < 200 for value in facts.values())


def test_the_listed_item_is_told_where_it_is_certain(tmp_path: Path) -> None:
    made = records("composition", 3)
    folder = write_dataset(tmp_path / "data", "composition", made)
    assert trace_record(folder, made[1]["id"]).item == {}
    for record in made[:2]:
        photo = tmp_path / "source" / record["id"]
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(record["image"])
    write_listing(folder, ImageFolderReader(tmp_path / "source"), 100, 2**20)
    told = trace_record(folder, made[1]["id"]).item
    assert told["place"] == told["key"] == made[1]["id"]
    assert str(len(made[1]["image"])) in told["stamp"]
    assert trace_record(folder, made[2]["id"]).item == {}
