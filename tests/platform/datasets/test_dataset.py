"""A dataset folder: what is written is read back, publishing is atomic, damage is told in a sentence."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.image_bytes import decode_image, decode_mask, encode_image, encode_mask
from kosmosg.data.records import RECORD_KINDS, schema, table
from kosmosg.errors import DataError
from kosmosg_platform.datasets import dataset as dataset_module
from kosmosg_platform.datasets.dataset import RecordDataset, write_manifest, write_records


def composition(index: int) -> dict[str, Any]:
    caption = f"a red ball number {index}"
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:6, 2 : 3 + index % 5] = True
    picture = encode_image(Image.new("RGB", (8, 8), (index % 256, 0, 0)))
    entity = {"text": "ball", "start": 6, "end": 10, "box": [0, 0, 8, 8], "crop": picture, "score": 0.5}
    return {
        "id": f"row-{index:04d}",
        "caption": caption,
        "image": picture,
        "width": 8,
        "height": 8,
        "entities": [entity | {"mask": encode_mask(mask)}],
        "source": "made here",
        "sha256": "0" * 64,
        "captioner": "test",
        "entity_finder": "test",
        "segmenter": "test",
        "provenance": None,
    }


def publish(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    rows, shards = [], []
    for number, size in enumerate(sizes):
        part = [composition(len(rows) + i) for i in range(size)]
        shards.append(write_records(folder, f"data/part-{number:05d}.parquet", "composition", part))
        rows += part
    write_manifest(folder, "composition", shards)
    return rows


def test_every_record_comes_back_at_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "ROW_GROUP_ROWS", 3)
    rows = publish(tmp_path, [7, 0, 1, 10])
    found = RecordDataset(tmp_path, cache_bytes=1)  # a cache of one row group: every path is walked
    assert len(found) == 18
    for index in np.random.default_rng(0).permutation(18):
        assert found[int(index)] == rows[index]
    assert found[-1] == rows[-1]
    assert list(found) == rows
    with pytest.raises(IndexError):
        found[18]


def test_a_pickled_dataset_reads_the_same(tmp_path: Path) -> None:
    rows = publish(tmp_path, [4])
    found = RecordDataset(tmp_path)
    assert found[2] == rows[2]
    assert pickle.loads(pickle.dumps(found))[3] == rows[3]  # noqa: S301 - our own bytes


def test_the_cache_stays_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_module, "ROW_GROUP_ROWS", 1)
    publish(tmp_path, [40])
    found = RecordDataset(tmp_path, cache_bytes=4000)
    for index in range(40):
        _ = found[index]
    assert 0 < found._cached <= 4000
    assert found._cached == sum(rows.nbytes for rows in found._cache.values())


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    one = write_records(tmp_path, "data/a.parquet", "composition", [composition(i) for i in range(5)])
    two = write_records(tmp_path, "data/b.parquet", "composition", [composition(i) for i in range(5)])
    assert one.sha256 == two.sha256
    assert not list(tmp_path.glob("**/*.tmp"))


def test_masks_and_pictures_survive(tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((37, 21)) > 0.5
    assert (decode_mask(encode_mask(mask)) == mask).all()
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    assert (np.asarray(decode_image(encode_image(picture))) == np.asarray(picture)).all()


def test_an_unfinished_folder_is_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no dataset folder"):
        RecordDataset(tmp_path / "absent")
    write_records(tmp_path, "data/part-00000.parquet", "composition", [composition(0)])
    with pytest.raises(DataError, match="not finished"):
        RecordDataset(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    publish(tmp_path, [3])
    with pytest.raises(DataError, match="'edit' are needed"):
        RecordDataset(tmp_path, kind="edit")
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99"):
        RecordDataset(tmp_path)
    path.write_text(json.dumps(manifest))
    (tmp_path / "data/part-00000.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"part-00000.* has 11 bytes, its manifest says \d+; delete it"):
        _ = RecordDataset(tmp_path)[0]
    (tmp_path / "data/part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00000.*cannot be read"):
        _ = RecordDataset(tmp_path)[0]


@pytest.mark.parametrize("kind", RECORD_KINDS)
def test_every_kind_has_an_id_and_a_version(kind: str) -> None:
    form = schema(kind)
    assert form.names[0] == "id"
    assert form.metadata[b"kosmosg.kind"] == kind.encode()
    assert form.metadata[b"kosmosg.schema_version"] == b"1"


def test_rows_of_another_form_are_refused() -> None:
    row = {"id": "a", "text": "b", "source": "c"}
    assert table("text", [row]).num_rows == 1
    with pytest.raises(DataError, match=r"surplus \['colour'\]"):
        table("text", [row | {"colour": "red"}])
    with pytest.raises(DataError, match="do not fit"):
        table("text", [row | {"text": 7}])
    with pytest.raises(DataError, match="value in every row of 'text'"):
        table("text", [row | {"text": None}])
    with pytest.raises(DataError, match="unknown kind"):
        table("texts", [row])
