"""Documents: every line and row comes out once, however a file is cut into ranges and compressed."""

import bz2
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kosmosg.data.files.line_ranges import BrokenOffError, read_lines
from kosmosg.data.files.source_files import FileEntry, SourceFiles
from kosmosg.data.records import table
from kosmosg.data.sources.base import ReadyRow, RejectedRow, SourceRow
from kosmosg.data.sources.scores import ScoreRange
from kosmosg.data.sources.tables import Tables
from kosmosg.data.sources.text_corpus import TextCorpus, TextCorpusReader
from kosmosg.errors import ConfigError, DataError
from tests.kosmosg.data.sources.layouts.images import as_remote, listed, outcome, read_all


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".bz2": bz2.compress,
    ".members.gz": lambda data: gzip.compress(data[:777]) + gzip.compress(data[777:]),
}


def reader_of(source: Any, item_bytes: int = 1 << 25, **chosen: Any) -> TextCorpusReader:
    reader = TextCorpusReader(source, TextCorpus(**chosen))
    tables = reader.tables
    reader.tables = Tables(tables.files, tables.forms, tables.longest, None, tables.known, item_bytes)
    return reader


def pile(seed: int, count: int = 300, damage: float = 0.1) -> tuple[bytes, dict[int, str]]:
    """JSON lines as the Pile has them, with what must become of the line at each offset."""
    chance = random.Random(seed)
    data, truth = b"", {}
    for number in range(count):
        text = f"document {number} " + "é\n\u2028word " * chance.randrange(60)
        line = json.dumps({"text": text, "meta": {"set": "x"}}, ensure_ascii=chance.random() < 0.5).encode()
        reason = ""
        if chance.random() < damage:
            line, reason = chance.choice(
                [
                    (line[:-3], "malformed"),
                    (line.replace(b"document", b"docum\xe9nt"), "encoding"),
                    (b'{"text": " "}', "empty"),
                    (b'{"text": null}', "malformed"),
                    (b'{"text": "' + b"x" * 9000 + b'"}', "too-long"),
                    (b'"text"', "malformed"),
                ]
            )
        truth[len(data)] = reason
        data += line + chance.choice([b"\n", b"\r\n", b"\n\n"])
    return data.removesuffix(b"\n"), truth


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("item_bytes", [1, 500, 4096, 1 << 25])
def test_a_line_belongs_to_the_range_in_which_it_begins(tmp_path: Path, packer: str, item_bytes: int) -> None:
    data, truth = pile(item_bytes)
    name = f"a.jsonl{packer}" if not packer.startswith(".members") else "a.jsonl.gz"
    (tmp_path / name).write_bytes(PACKERS[packer](data))
    expected = {f"{name}@{offset}": reason for offset, reason in truth.items()}
    if item_bytes == 1:
        return compare_single_bytes(tmp_path, name, data, truth)
    reader = reader_of(str(tmp_path), item_bytes, max_characters=5000)
    items = listed(reader)
    found = list(reader.read(items))
    assert outcome(found) == expected
    assert outcome(row for item in items[::-1] for row in reader.read([item])) == expected
    assert read_all(reader_of(as_remote(tmp_path), item_bytes, max_characters=5000)) == expected
    table("text", [row.record for row in found if isinstance(row, ReadyRow)])


def compare_single_bytes(folder: Path, name: str, data: bytes, truth: dict[int, str]) -> None:
    """Ranges of one byte each, around some lines: every line is in one of them."""
    files = SourceFiles(folder)
    for offset in list(truth)[:40:8]:
        starts = [
            line.start
            for start in range(max(offset - 3, 0), offset + 4)
            for line in read_lines(files, name, start, start + 1, 20_000)
            if line.data and line.data.strip()
        ]
        assert starts == [offset]


@pytest.mark.parametrize("packer", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("item_bytes", [2000, 1 << 25])
def test_a_torn_file_gives_its_good_lines_and_one_row(tmp_path: Path, packer: str, item_bytes: int) -> None:
    chance = random.Random(3)
    lines = ["".join(chance.choices("abcdefghij ", k=200)) for _ in range(20_000)]
    data = PACKERS[packer]("".join(json.dumps({"text": line}) + "\n" for line in lines).encode())
    (tmp_path / f"a.jsonl{packer}").write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "good"}) + "\n")
    reader = reader_of(str(tmp_path), item_bytes * 100)
    found = list(reader.read(listed(reader)))
    bad = [row for row in found if isinstance(row, RejectedRow)]
    assert [row.refusal["reason"] for row in bad] == ["unreadable"]
    texts = [row.record["text"] for row in found if isinstance(row, ReadyRow)]
    assert texts[-1] == "good"
    assert len(texts) > 5_000
    assert texts[:-1] == lines[: len(texts) - 1]


def test_fineweb_parquet_with_a_language_score(tmp_path: Path) -> None:
    rows = [
        {"text": f"text number {index}", "id": f"<urn:uuid:{index}>", "language_score": index / 100}
        for index in range(100)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "000_00000.parquet", row_group_size=30)
    limits = {"language_score": ScoreRange(min=0.5)}
    found = read_all(reader_of(str(tmp_path), 200, id="id", thresholds=limits))
    good = [key for key, reason in found.items() if not reason]
    assert good == [f"<urn:uuid:{index}>" for index in range(50, 100)]
    assert set(found.values()) == {"", "language_score"}
    assert len(found) == 100


def test_documents_keep_their_form_and_have_a_length(tmp_path: Path) -> None:
    lines = [json.dumps({"content": text}) for text in ("line one\nline  two\n", "short", "long " * 30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    reader = reader_of(str(tmp_path), min_characters=6, max_characters=100)
    first, second, third = reader.read(listed(reader))
    assert isinstance(first, ReadyRow)
    assert first.record["text"] == "line one\nline  two"
    assert [reason(row) for row in (second, third)] == ["too-short", "too-long"]
    with pytest.raises(ConfigError, match="min_characters is 5, max_characters 4"):
        TextCorpus(min_characters=5, max_characters=4)


def reason(row: SourceRow) -> str:
    return row.refusal["reason"] if isinstance(row, RejectedRow) else ""


def test_plain_lines_are_documents_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two  words\r\n")
    reader = reader_of(str(tmp_path))
    texts = [row.record["text"] for row in reader.read(listed(reader)) if isinstance(row, ReadyRow)]
    assert texts == ["one", " two  words"]


def test_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"url": "x"}\n')
    with pytest.raises(
        DataError, match=r"no column of text \(looked for text, content.*it has url.*build.source.column"
    ):
        listed(reader_of(str(tmp_path)))
    with pytest.raises(DataError, match="no column of words; it has url"):
        listed(reader_of(str(tmp_path), column="words"))
    with pytest.raises(DataError, match="no tables under"):
        listed(reader_of(as_remote(tmp_path / "a")) if (tmp_path / "a").mkdir() is None else reader_of(""))


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"text": "first"}\n')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"text": "last"}\n')
    reader = reader_of(str(tmp_path))
    tracemalloc.start()
    try:
        found = list(read_all(reader).values())
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()
    assert found == ["", "too-long", ""]


def test_a_file_that_goes_away_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n')
    reader = reader_of(as_remote(tmp_path))
    items = listed(reader)
    monkeypatch.setattr(SourceFiles, "entry", lambda self, path: FileEntry(path, 1, ""))
    (tmp_path / "a.jsonl").unlink()
    assert outcome(reader.read(items[:1])) == {"a.jsonl@0": "unreadable"}


def test_a_file_that_went_away_is_told_in_every_range(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 100)
    with pytest.raises(BrokenOffError, match="not there any more"):
        list(read_lines(SourceFiles(tmp_path), "b.jsonl", 50, 90))
    reader = reader_of(str(tmp_path), 300)
    items = listed(reader)
    assert len(items) > 4
    (tmp_path / "a.jsonl").unlink()
    found = [row for item in items for row in reader.read([item])]
    assert [reason(row) for row in found] == ["unreadable"] * len(items)
