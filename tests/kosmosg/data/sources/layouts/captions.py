"""Small copies of tables of captions, in the layouts that public sets have, with what must become of every row."""

import base64
import csv
import gzip
import io
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.kosmosg.data.sources.layouts.images import bad_images, encoded, good_images


@dataclass
class Copy:
    """What was written, and what must come of it: id -> reason, "" for good ones."""

    folder: Path
    truth: dict[str, str] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)


@dataclass
class Row:
    """One row before it is written."""

    number: int
    caption: str | bytes
    image: bytes
    path: str
    reason: str = ""


WORDS = 'a "lone quote', "café, with comma", "3 < 5 & more", "plain words", "a\u2028separator", "日本語の説明"


def rows(count: int, damage: float, seed: int, paths: bool = False) -> list[Row]:
    """Rows, some of them damaged; with `paths` images may be missing or lead astray."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        row = Row(number, f"{chance.choice(WORDS)} {number}", encoded(number), f"images/{number % 7}/{number}.jpg")
        if chance.random() < 0.1:
            row.image = chance.choice(sorted(good_images(number).items()))[1]
        if chance.random() < damage:
            kinds = ["bytes", "bytes", "caption", "encoding", "long", "width"]
            kind = chance.choice(kinds + (["missing", "escape", "absolute"] if paths else []))
            if kind == "bytes":
                row.image = bad_image(number, chance)
                row.reason = "unreadable"
            elif kind == "caption":
                row.caption, row.reason = " ", "no-caption"
            elif kind == "encoding":
                row.caption, row.reason = b"caf\xe9", "encoding"
            elif kind == "long":
                row.caption, row.reason = "word " * 2000, "too-long"
            elif kind == "width":
                row.reason = "malformed"
            elif kind == "missing":
                row.path, row.reason = f"images/{number}-gone.jpg", "missing-file"
            else:
                row.path = "../outside.jpg" if kind == "escape" else "/etc/passwd.jpg"
                row.reason = "escapes"
        made.append(row)
    return made


def bad_image(number: int, chance: random.Random) -> bytes:
    """One that no decoder takes; without only its end marker, a JPEG is sometimes taken."""
    bad = bad_images(number)
    return bad[chance.choice([name for name in sorted(bad) if name not in ("empty", "cut-by-two")])]


def raw(caption: str | bytes) -> bytes:
    return caption if isinstance(caption, bytes) else caption.encode()


def put_images(folder: Path, made: list[Row]) -> None:
    (folder.parent / "outside.jpg").write_bytes(encoded(1))
    for row in made:
        if row.reason not in ("missing-file", "escapes"):
            path = folder / row.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row.image)


def write_lines(
    copy: Copy, name: str, made: list[tuple[Row, bytes]], header: bytes = b"", packed: bool = False
) -> None:
    """A file of lines; ids are the offsets at which they begin."""
    out = io.BytesIO()
    out.write(header)
    for row, line in made:
        key = f"{name}@{out.tell()}"
        copy.truth[key] = row.reason
        copy.captions[key] = " ".join(row.caption.split()) if isinstance(row.caption, str) else ""
        out.write(line + b"\n")
    (copy.folder / name).write_bytes(gzip.compress(out.getvalue()) if packed else out.getvalue())


def cc3m(
    folder: Path, count: int = 60, damage: float = 0.3, seed: int = 0, form: str = "cc3m", packed: bool = False
) -> Copy:
    """Caption TAB path (`cc3m`), the other way round (`cc12m`), or with GILL's header (`gill`)."""
    copy = Copy(folder)
    folder.mkdir(parents=True)
    made = rows(count, damage, seed, paths=True)
    put_images(folder, made)
    lines = []
    for row in made:
        cells = [raw(row.caption), row.path.encode()]
        cells = cells[::-1] if form == "cc12m" else cells
        lines.append((row, b"\t".join([*cells, b"one more"] if row.reason == "malformed" else cells)))
    header = b"caption\timage\n" if form == "gill" else b""
    write_lines(copy, "train.tsv.gz" if packed else "train.tsv", lines, header, packed)
    return copy


def kosmos(folder: Path, count: int = 60, damage: float = 0.3, seed: int = 0) -> Copy:
    """Hash, caption, base64 image, width, height: the tables of the original's loaders."""
    copy = Copy(folder)
    folder.mkdir(parents=True)
    lines = []
    for row in rows(count, damage, seed):
        cells = [b"%032x" % row.number, raw(row.caption), base64.b64encode(row.image), b"40", b"30"]
        if row.reason == "unreadable" and row.number % 2:
            cells[2] = b"/9j/no base64!" * 20
        lines.append((row, b"\t".join(cells[:3] if row.reason == "malformed" else cells)))
    write_lines(copy, "0000.tsv", lines)
    return copy


def jsonl(folder: Path, count: int = 60, damage: float = 0.3, seed: int = 0) -> Copy:
    """JSON lines with paths."""
    copy = Copy(folder)
    folder.mkdir(parents=True)
    made = rows(count, damage, seed, paths=True)
    put_images(folder, made)
    lines = []
    for row in made:
        caption = row.caption if isinstance(row.caption, str) else "X"
        line = json.dumps({"file_name": row.path, "text": caption, "license": "CC BY 4.0"}).encode()
        line = line.replace(b'"X"', b'"' + raw(row.caption) + b'"') if row.reason == "encoding" else line
        lines.append((row, line[:-5] if row.reason == "malformed" else line))
    write_lines(copy, "metadata.jsonl", lines)
    return copy


def table_csv(folder: Path, count: int = 60, damage: float = 0.3, seed: int = 0) -> Copy:
    """CSV with a header; captions hold quotes, commas and line breaks."""
    copy = Copy(folder)
    folder.mkdir(parents=True)
    made = rows(count, damage, seed, paths=True)
    put_images(folder, made)
    lines = []
    for row in made:
        if isinstance(row.caption, str) and not row.reason and row.number % 3 == 0:
            row.caption += '\nsecond "line", of it'
        out = io.StringIO()
        caption = row.caption if isinstance(row.caption, str) else row.caption.decode("latin-1")
        csv.writer(out, lineterminator="").writerow(
            [row.path, caption, *(["more"] if row.reason == "malformed" else [])]
        )
        code = "latin-1" if row.reason == "encoding" else "utf-8"
        lines.append((row, out.getvalue().encode(code)))
    write_lines(copy, "list.csv", lines, b"image_path,Caption\n")
    return copy


def parquet(
    folder: Path,
    count: int = 60,
    damage: float = 0.3,
    seed: int = 0,
    struct: bool = False,
    extra: dict[str, Any] | None = None,
) -> Copy:
    """Parquet with bytes, or with the struct of bytes and path that the Hub's tools write."""
    copy = Copy(folder)
    folder.mkdir(parents=True)
    made = [row for row in rows(count, damage, seed) if row.reason != "malformed"]
    for row in made:
        if row.reason == "unreadable" and row.number % 2:
            row.image, row.reason = b"", "missing-image"
    texts = pa.array([raw(row.caption) for row in made], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(texts), texts.buffers())  # not all of it UTF-8
    if struct:
        column = [{"bytes": row.image or None, "path": None} for row in made]
        images = pa.array(column, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        images = pa.array([row.image or None for row in made], pa.binary())
    columns = {"TEXT": texts, "image": images, "URL": [f"https://example.org/{row.number}.jpg" for row in made]}
    columns |= {name: values[: len(made)] for name, values in (extra or {}).items()}
    pq.write_table(pa.table(columns), folder / "part-00000.parquet", row_group_size=17)
    for index, row in enumerate(made):
        key = f"part-00000.parquet:{index}"
        copy.truth[key] = row.reason
        copy.captions[key] = " ".join(row.caption.split()) if isinstance(row.caption, str) else ""
    return copy
