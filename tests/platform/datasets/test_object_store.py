"""Sources in a real object store: the same rows as from a local folder, and a store that is away for a while."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kosmosg.data.annotators.base import Sample
from kosmosg.data.sources.base import Reader, ReadyRow, Source, SourceRow
from kosmosg.data.sources.image_folder import ImageFolder
from kosmosg.data.sources.text_corpus import TextCorpus
from tests.kosmosg.data.sources.layouts.images import encoded
from tests.object_store import ObjectStore
from tests.platform.datasets.layouts_build import LAYOUTS, Make


def photos(folder: Path, count: int, damage: float) -> tuple[dict[str, str], Source]:
    for number in range(count):
        path = folder / f"thing {number % 3}" / f"{number}ü.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number)[: 80 if number == 7 else None])
        path.with_suffix(".txt").write_text(f"thing number {number}")
    return {}, ImageFolder()


def documents(folder: Path, count: int, damage: float) -> tuple[dict[str, str], Source]:
    folder.mkdir(parents=True)
    lines = [f'{{"text": "document {number} {"x" * number}"}}\n' for number in range(count)]
    (folder / "a.jsonl").write_text("".join(lines) + "no JSON\n")
    return {}, TextCorpus()


MAKERS: dict[str, Make] = {"photos": photos, "documents": documents, **LAYOUTS}


def plain(rows: Iterator[SourceRow]) -> list[Any]:
    """Rows as plain values, which can be compared."""
    found: list[Any] = []
    for row in rows:
        if isinstance(row, Sample):
            found.append(("sample", row.id, row.source, row.encoded, row.sha256, dict(row.hints)))
        elif isinstance(row, ReadyRow):
            found.append(("record", dict(row.record)))
        else:
            found.append(("rejected", dict(row.refusal)))
    return found


@pytest.mark.parametrize("layout", MAKERS)
def test_a_bucket_gives_what_the_folder_gives(object_store: ObjectStore, tmp_path: Path, layout: str) -> None:
    source: Any
    _, source = MAKERS[layout](tmp_path / "source", 24, 0.2)
    url = object_store.upload(tmp_path / "source", f"{tmp_path.name}/source")
    far = source
    if getattr(source, "images", None):
        far = replace(source, images=object_store.upload(tmp_path / "source-images", f"{tmp_path.name}/images"))
    readers: list[Reader] = [*source.open(str(tmp_path / "source")).values(), *far.open(url).values()]
    (local, remote) = [list(reader.items()) for reader in readers]
    assert [item._replace(stamp="") for item in remote] == [item._replace(stamp="") for item in local]
    assert all(there.stamp for there, here in zip(remote, local, strict=True) if here.stamp)
    expected = plain(readers[0].read(local))
    assert len(expected) >= 24
    assert plain(readers[1].read(remote)) == expected
