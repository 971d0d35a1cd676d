"""InstructPix2Pix: every pair that is listed comes out once, from folders and from Parquet."""

import io
import json
import pickle
import random
from pathlib import Path

import pytest

from kosmosg.data.files.json_stream import array_elements
from kosmosg.data.image_bytes import decode_image
from kosmosg.data.records import table
from kosmosg.data.sources.base import Reader, ReadyRow
from kosmosg.data.sources.instruct_pix2pix import EditFolderReader, EditParquetReader, InstructPix2Pix
from kosmosg.data.sources.stored_image import ImageStorage
from kosmosg.errors import DataError
from tests.kosmosg.data.sources.layouts import edits
from tests.kosmosg.data.sources.layouts.images import as_remote, encoded, listed, outcome, read_all

STORAGE = ImageStorage(512)


def opened(folder: Path, chosen: InstructPix2Pix | None = None) -> Reader:
    (reader,) = (chosen or InstructPix2Pix()).open(str(folder)).values()
    return reader


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", [edits.folders, edits.parquet])
def test_both_layouts_add_up(tmp_path: Path, layout: object, seed: int) -> None:
    copy = layout(tmp_path / "set", seed=seed)  # type: ignore[operator]
    reader = opened(copy.folder)
    items = listed(reader)
    found = list(reader.read(items))
    assert outcome(found) == copy.truth
    assert sum(item.rows for item in items) == len(copy.truth)
    records = [row.record for row in found if isinstance(row, ReadyRow)]
    assert table("edit", records).num_rows == list(copy.truth.values()).count("")
    for record in records:
        assert decode_image(record["before"]).size == decode_image(record["after"]).size == (40, 30)
        assert record["before"] != record["after"]
    random.Random(seed).shuffle(items)
    assert outcome(pickle.loads(pickle.dumps(reader)).read(items)) == copy.truth  # noqa: S301 - our own


def test_a_bucket_gives_the_same_rows(tmp_path: Path) -> None:
    copy = edits.folders(tmp_path / "set")
    assert read_all(EditFolderReader(as_remote(copy.folder), STORAGE)) == copy.truth
    copy = edits.parquet(tmp_path / "hub")
    assert read_all(EditParquetReader(as_remote(copy.folder), STORAGE)) == copy.truth


def test_the_first_pair_alone(tmp_path: Path) -> None:
    copy = edits.folders(tmp_path / "set")
    seeds = json.loads((copy.folder / "seeds.json").read_text())
    found = read_all(opened(copy.folder, InstructPix2Pix(pairs="first")))
    assert list(found) == [f"{name}/{pairs[0]}" for name, pairs in seeds]
    assert all(copy.truth[key] == reason for key, reason in found.items())


def test_published_bytes_are_kept_or_encoded_anew(tmp_path: Path) -> None:
    copy = edits.folders(tmp_path / "set", damage=0, absent=0)
    key = next(iter(copy.truth))
    published = (copy.folder / f"{key}_0.jpg").read_bytes()

    def first(chosen: InstructPix2Pix) -> bytes:
        reader = opened(copy.folder, chosen)
        row = next(iter(reader.read(listed(reader)[:1])))
        assert isinstance(row, ReadyRow)
        assert json.loads(row.record["provenance"]) == {"url": "https://example.org/0"}
        return bytes(row.record["before"])

    assert first(InstructPix2Pix()) == published
    assert len(first(InstructPix2Pix(quality=30))) < len(published)
    assert decode_image(first(InstructPix2Pix(image_size=20))).size == (20, 15)


def test_names_that_lead_out_or_mean_nothing(tmp_path: Path) -> None:
    copy = edits.folders(tmp_path / "set", count=1, damage=0, absent=0)
    (name, pairs), *_ = json.loads((copy.folder / "seeds.json").read_text())
    odd = [[name, pairs], [name, pairs], ["../outside", ["1"]], ["x", ["../../1"]], ["y", []], "z", ["/etc", [5]]]
    (copy.folder / "seeds.json").write_text(json.dumps(odd))
    found = read_all(opened(copy.folder))
    assert {key: reason for key, reason in found.items() if not key.startswith(name)} == {
        "../outside/1": "escapes",
        "x/../../1": "missing-file",
        "y": "malformed",
        "seeds.json@5": "malformed",
        "/etc/5": "escapes",
    }
    assert found[f"{name}@1"] == "duplicate"


def test_a_torn_list_gives_what_it_has_and_says_so(tmp_path: Path) -> None:
    copy = edits.folders(tmp_path / "set")
    text = (copy.folder / "seeds.json").read_text()
    (copy.folder / "seeds.json").write_text(text[: len(text) // 2])
    found = read_all(opened(copy.folder))
    assert found.pop("seeds.json") == "malformed"
    assert 0 < len(found) < len(copy.truth)
    assert all(copy.truth[key] == reason for key, reason in found.items())


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither seeds.json with folders beside it nor .parquet files"):
        opened(tmp_path)
    (tmp_path / "shard-00.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"unpack shard-00.zip and the other archives into that folder"):
        opened(tmp_path)
    (tmp_path / "seeds.json").write_text('{"a": []}')
    with pytest.raises(DataError, match=r"no JSON array; it begins with .*expected \[\[name, \[seed"):
        listed(opened(tmp_path))
    (tmp_path / "seeds.json").write_text("[]")
    with pytest.raises(DataError, match="names no folders"):
        listed(opened(tmp_path))
    (tmp_path / "seeds.json").unlink()
    edits.parquet(tmp_path / "hub", count=1)
    file = next((tmp_path / "hub").rglob("*.parquet"))
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(file).drop_columns(["edit_prompt"]), file)
    with pytest.raises(DataError, match=r"no column edit_prompt; InstructPix2Pix has original_prompt"):
        listed(opened(tmp_path))


@pytest.mark.parametrize("seed", range(5))
def test_long_arrays_are_read_as_they_are(seed: int) -> None:
    chance = random.Random(seed)
    alphabet = 'ab"\\[]{},é\n\u2028😀'
    words = ["".join(chance.choices(alphabet, k=chance.randrange(400))) for _ in range(600)]
    values = [[word, [word[:5]] * chance.randrange(4)] for word in words]
    text = json.dumps(values, indent=chance.choice([None, 2]), ensure_ascii=chance.random() < 0.5)
    assert list(array_elements(io.BytesIO(text.encode()), "a")) == values
    with pytest.raises(DataError, match=r"torn|UTF-8"):
        list(array_elements(io.BytesIO(text.encode()[: chance.randrange(10, len(text) - 2)]), "a"))


def test_the_list_is_never_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "seeds.json"
    path.write_text(json.dumps([[f"{number:07d}", ["123456789"] * 4] for number in range(100_000)]))
    tracemalloc.start()
    try:
        with path.open("rb") as file:
            assert sum(1 for _ in array_elements(file, "seeds.json")) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_long_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "seeds.json").write_text('[["a", ["1"]]]')
    (tmp_path / "a" / "prompt.json").write_text(json.dumps({"input": "x", "edit": "word " * 2000}))
    for side in (0, 1):
        (tmp_path / "a" / f"1_{side}.jpg").write_bytes(encoded(side))
    assert read_all(opened(tmp_path)) == {"a/1": "too-long"}
