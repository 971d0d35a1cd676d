"""Tables of captions: every layout is known by itself, and every row comes out once."""

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosmosg.data.annotators.base import Sample
from kosmosg.data.image_bytes import decode_image
from kosmosg.data.records import table
from kosmosg.data.sources.base import ReadyRow, RejectedRow
from kosmosg.data.sources.caption_table import CaptionTable, CaptionTableReader
from kosmosg.data.sources.scores import ScoreRange
from kosmosg.data.sources.tables import Tables
from kosmosg.errors import ConfigError, DataError
from tests.kosmosg.data.sources.layouts import captions
from tests.kosmosg.data.sources.layouts.captions import Copy
from tests.kosmosg.data.sources.layouts.images import as_remote, bomb, encoded, listed, outcome, read_all

LAYOUTS: dict[str, Callable[..., Copy]] = {
    "cc3m": captions.cc3m,
    "cc12m": lambda folder, **more: captions.cc3m(folder, form="cc12m", **more),
    "gill": lambda folder, **more: captions.cc3m(folder, form="gill", **more),
    "cc3m.gz": lambda folder, **more: captions.cc3m(folder, packed=True, **more),
    "kosmos": captions.kosmos,
    "jsonl": captions.jsonl,
    "csv": captions.table_csv,
    "parquet": captions.parquet,
    "struct": lambda folder, **more: captions.parquet(folder, struct=True, **more),
}


def reader_of(source: Any, **chosen: Any) -> CaptionTableReader:
    return CaptionTableReader(source, CaptionTable(**{"kind": "caption", **chosen}))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_every_layout_adds_up(tmp_path: Path, layout: str, seed: int) -> None:
    copy = LAYOUTS[layout](tmp_path / "set", seed=seed)
    reader = reader_of(str(copy.folder))
    items = listed(reader)
    found = list(reader.read(items))
    assert outcome(found) == copy.truth
    records = [row.record for row in found if isinstance(row, ReadyRow)]
    assert table("caption", records).num_rows == list(copy.truth.values()).count("")
    assert {record["id"]: record["text"] for record in records} == {
        key: text for key, text in copy.captions.items() if not copy.truth[key]
    }
    assert all(decode_image(record["image"]).size == (record["width"], record["height"]) for record in records)
    random.Random(seed).shuffle(items)
    assert outcome(pickle.loads(pickle.dumps(reader)).read(items)) == copy.truth  # noqa: S301 - our own


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bucket_and_other_ranges_give_the_same_rows(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = LAYOUTS[layout](tmp_path / "set", count=90)
    assert read_all(reader_of(as_remote(copy.folder))) == copy.truth
    for size in (200, 3_000, 10_000):
        reader = reader_of(str(copy.folder))
        reader.tables = Tables(
            reader.files, reader.tables.forms, reader.tables.longest, None, reader.tables.known, item_bytes=size
        )
        items = listed(reader)
        assert outcome(reader.read(items)) == copy.truth
        assert outcome(row for item in items for row in reader.read([item])) == copy.truth


def test_compositions_carry_caption_scores_and_origin(tmp_path: Path) -> None:
    extra = {"AESTHETIC_SCORE": [4.75 + index / 100 for index in range(60)], "NSFW": ["UNLIKELY", None] * 30}
    copy = captions.parquet(tmp_path / "set", damage=0.0, extra={**extra, "LICENSE": ["?", "CC0"] * 30})
    chosen = CaptionTable()
    assert chosen.steps == ("told", "noun_chunks", "clipseg")
    assert CaptionTable(kind="caption").steps == ()
    (reader,) = chosen.open(str(copy.folder)).values()
    found = list(reader.read(listed(reader)))
    first, second = found[:2]
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert first.hints["caption"] == copy.captions[first.id]
    assert first.hints["score.aesthetic_score"] == "4.75"
    assert first.hints["score.nsfw"] == "UNLIKELY"
    assert first.hints["url"] == "https://example.org/0.jpg"
    assert "licence" not in first.hints
    assert second.hints["licence"] == "CC0"
    assert "score.nsfw" not in second.hints
    assert len(first.sha256) == 64


def test_thresholds_reject_by_column(tmp_path: Path) -> None:
    extra = {"pwatermark": [index / 60 for index in range(60)], "NSFW": ["UNLIKELY", "UNSURE", None] * 20}
    copy = captions.parquet(tmp_path / "set", damage=0.0, extra=extra)
    limits = {"pwatermark": ScoreRange(min=0.1, max=0.5), "nsfw": ScoreRange(one_of=("unlikely",))}
    found = read_all(reader_of(str(copy.folder), thresholds=limits))
    for index, (score, word) in enumerate(zip(extra["pwatermark"], extra["NSFW"], strict=True)):
        expected = "pwatermark" if not 0.1 <= score <= 0.5 else "nsfw" if word != "UNLIKELY" else ""
        assert found[f"part-00000.parquet:{index}"] == expected
    with pytest.raises(DataError, match=r"no column punsafe for thresholds; there are TEXT, image"):
        listed(reader_of(str(copy.folder), thresholds={"punsafe": ScoreRange(max=0.1)}))
    with pytest.raises(ConfigError, match="min, max or one_of"):
        ScoreRange()
    with pytest.raises(ConfigError, match="min 2 is above max 1"):
        ScoreRange(min=2, max=1)


@pytest.mark.parametrize(
    ("name", "text", "command"),
    [
        ("cc12m.tsv", "https://a.b/c.jpg\ta cat\nhttp://a.b/d\ta dog\n", "first line .*url TAB caption.*--url_col url"),
        ("cc3m.tsv", "a cat\thttps://a.b/c.jpg\na dog\thttp://a.b/d\n", "first line .*caption TAB url.*--url_col url"),
        (
            "coyo.jsonl",
            '{"id": 1, "url": "https://a.b/c", "text": "a cat"}\n',
            "jsonl --url_col url --caption_col text",
        ),
        ("laion.csv", "URL,TEXT\nhttps://a.b/c,a cat\n", "csv --url_col URL --caption_col TEXT"),
        ("gill.tsv", "caption\timage\na cat\thttps://a.b/c\n", "tsv --url_col image --caption_col caption"),
    ],
)
def test_a_table_of_addresses_names_the_tool_and_its_command(
    tmp_path: Path, name: str, text: str, command: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"URLs of images, not images.*img2dataset --url_list {name}.*{command}"):
        listed(reader_of(str(tmp_path)))
    # Its captions alone serve stage 2.
    assert set(read_all(reader_of(str(tmp_path), with_images=False)).values()) == {""}


def test_laion_and_the_list_beside_shards_are_refused(tmp_path: Path) -> None:
    columns = {"URL": ["https://a.b/c"], "TEXT": ["a cat"], "similarity": [0.3]}
    pq.write_table(pa.table(columns), tmp_path / "part-00000.snappy.parquet")
    with pytest.raises(DataError, match="parquet --url_col URL --caption_col TEXT"):
        listed(reader_of(str(tmp_path)))
    columns = {"url": ["https://a.b/c"], "caption": ["a cat"], "key": ["0"], "status": ["success"]}
    pq.write_table(pa.table(columns), tmp_path / "part-00000.snappy.parquet")
    with pytest.raises(DataError, match=r"beside its shards; read those, with build.source.use=img2dataset"):
        listed(reader_of(str(tmp_path)))


def test_what_is_no_table_is_refused_with_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        listed(reader_of(str(tmp_path / "absent")))
    with pytest.raises(DataError, match=r"no tables under .*; looked for .parquet, .csv"):
        listed(reader_of(str(tmp_path)))
    (tmp_path / "a.jsonl").write_text('{"x": 1, "y": "z"}\n')
    with pytest.raises(DataError, match=r"a.jsonl has no column with captions; it has x, y; name one with"):
        listed(reader_of(str(tmp_path)))
    (tmp_path / "a.jsonl").write_text('{"text": "a cat"}\n')
    with pytest.raises(DataError, match=r"no column with images; it has text; .*with_images=false"):
        listed(reader_of(str(tmp_path)))
    (tmp_path / "a.jsonl").write_bytes(b"\x00\x01\x02 nothing\n")
    with pytest.raises(DataError, match="holds no JSON objects"):
        listed(reader_of(str(tmp_path)))
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no footer")
    with pytest.raises(DataError, match="no readable Parquet file"):
        listed(reader_of(str(tmp_path)))
    with pytest.raises(ConfigError, match="compositions need images"):
        CaptionTable(with_images=False)


def test_one_bad_file_is_one_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    copy = captions.parquet(tmp_path / "set", damage=0.0)
    (copy.folder / "a.parquet").write_bytes((copy.folder / "part-00000.parquet").read_bytes()[:-9])
    pq.write_table(pa.table({"TEXT": ["no images"]}), copy.folder / "b.parquet")
    (copy.folder / "z.tsv").write_bytes(b"")
    bad = {"a.parquet": "malformed", "b.parquet": "malformed", "z.tsv": "malformed"}
    assert read_all(reader_of(str(copy.folder))) == {**copy.truth, **bad}


def test_a_damaged_page_costs_its_rows_one_by_one(tmp_path: Path) -> None:
    copy = captions.parquet(tmp_path / "set", damage=0.0)
    path = copy.folder / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    at = chunk.data_page_offset
    data[at : at + 400] = b"\xff" * 400
    path.write_bytes(bytes(data))
    found = read_all(reader_of(str(copy.folder)))
    assert found.keys() == copy.truth.keys()
    lost = [int(key.split(":")[1]) for key, reason in found.items() if reason]
    assert set(lost) <= set(range(17, 34))
    assert lost
    assert {found[f"part-00000.parquet:{row}"] for row in lost} == {"unreadable"}


def test_an_image_elsewhere_and_one_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    for name in ("photos/a.jpg", "set/deep/b.jpg", "set/c.jpg"):
        (tmp_path / name).write_bytes(encoded(1))
    lines = "caption\timage\nx\ta.jpg\ny\tb.jpg\nz\t../c.jpg\nw\t" + "long" * 300 + ".jpg\n"
    (tmp_path / "set" / "deep" / "t.tsv").write_text(lines)
    beside = read_all(reader_of(str(tmp_path / "set")))
    assert list(beside.values()) == ["missing-file", "", "escapes", "missing-file"]
    single = read_all(reader_of(str(tmp_path / "set" / "deep" / "t.tsv")))
    assert list(single.values()) == ["missing-file", "", "escapes", "missing-file"]
    elsewhere = read_all(reader_of(str(tmp_path / "set"), images=str(tmp_path / "photos")))
    assert list(elsewhere.values()) == ["", "missing-file", "escapes", "missing-file"]


def test_own_columns_ids_and_header(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    (tmp_path / "t.tsv").write_text("k1\ta.jpg\tein Hund\n\ta.jpg\tnoch einer\n")
    chosen = {"caption": "2", "image": "1", "id": "0"}
    assert read_all(reader_of(str(tmp_path), **chosen)) == {"k1": "", "t.tsv@18": "malformed"}
    (tmp_path / "t.tsv").write_text("nr\tbild\twort\nk1\ta.jpg\tein Hund\n")
    chosen = {"caption": "wort", "image": "bild", "id": "nr", "header": True}
    assert read_all(reader_of(str(tmp_path), **chosen)) == {"k1": ""}
    with pytest.raises(DataError, match="no column Wort; it has nr, bild, wort"):
        listed(reader_of(str(tmp_path), **{**chosen, "caption": "Wort"}))


def test_what_img2dataset_could_not_fetch_says_so(tmp_path: Path) -> None:
    columns = {"caption": ["a", "b"], "jpg": [encoded(1), None], "status": ["success", "failed_to_download"]}
    pq.write_table(pa.table({**columns, "error_message": [None, "HTTP Error 404"]}), tmp_path / "00000.parquet")
    reader = reader_of(str(tmp_path))
    _, bad = reader.read(listed(reader))
    assert isinstance(bad, RejectedRow)
    assert bad.refusal["reason"] == "failed-download"
    assert "404" in bad.refusal["message"]


def test_images_are_checked_before_they_are_decoded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "image": [bomb()]}), tmp_path / "a.parquet")
    assert list(read_all(reader_of(str(tmp_path))).values()) == ["unreadable"]


def test_a_quote_that_is_never_closed_costs_its_row(tmp_path: Path) -> None:
    lines = ["caption"] + [f"caption {index}" for index in range(50)]
    lines[20] = '"never closed'
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    found = read_all(reader_of(str(tmp_path), with_images=False))
    assert list(found.values()).count("malformed") == 1
    assert list(found.values()).count("") == 49


def test_the_first_ranges_are_small(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"caption number {index}\n" for index in range(100_000)))
    sizes = [item.rows for item in listed(reader_of(str(tmp_path), with_images=False))]
    assert sizes[0] < 20
    assert max(sizes) <= 20_000
    assert abs(sum(sizes) - 100_000) < 30_000


def test_json_that_cannot_be_stored(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in ("fine", "\ud800", 7, None)] + ["[" * 100_000, "[1]", "{}"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = list(read_all(reader_of(str(tmp_path), with_images=False)).values())
    assert found == ["", "encoding", "no-caption", "no-caption", "malformed", "malformed", "no-caption"]
