"""InstructPix2Pix: images before and after an edit, from the original's folders or the Parquet files of the Hub."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from kosmosg.data.annotators.apply import refusal
from kosmosg.data.files.json_stream import array_elements
from kosmosg.data.files.source_files import SourceFiles
from kosmosg.data.sources.base import Item, Reader, ReadyRow, SourceRow, rejected, required
from kosmosg.data.sources.image_rows import BadRow
from kosmosg.data.sources.scores import listed
from kosmosg.data.sources.stored_image import ImageStorage
from kosmosg.data.sources.tables import Fitting, TableHead, Tables
from kosmosg.errors import DataError

COLUMNS = ("original_prompt", "original_image", "edit_prompt", "edited_image")
SEEDS = "seeds.json"
_PAIR_BYTES = 500_000  # of two images of 512 pixels at the original's quality, about
_PROMPT_BYTES = 1_000_000
_CHARACTERS = 5_000


class EditPairs:
    """What both layouts have in common: two images, a caption and an instruction become a record."""

    kind = "edit"
    annotated = False
    shuffled = True
    shard_rows = 0

    def __init__(self, source: str | SourceFiles, storage: ImageStorage) -> None:
        self.files = source if isinstance(source, SourceFiles) else SourceFiles(source)
        self.storage = storage

    def described(self, layout: str, pairs: str) -> dict[str, Any]:
        """For the manifest."""
        sizes = {"image_size": self.storage.size, "quality": self.storage.quality}
        return {"layout": layout, "source": self.files.name, "pairs": pairs, **sizes}

    def record(
        self, key: str, place: str, texts: tuple[Any, Any], images: tuple[bytes, bytes], url: Any = None
    ) -> SourceRow:
        """One pair. Raises BadRow, ImageError."""
        caption = _words(texts[0], "no-caption", "the caption of the image before")
        instruction = _words(texts[1], "no-instruction", "the instruction")
        before, after = (
            self.storage.store(data, f"{key} ({name})") for data, name in zip(images, ("before", "after"), strict=True)
        )
        if (before.width, before.height) != (after.width, after.height):
            sizes = f"{before.width}x{before.height} and {after.width}x{after.height}"
            raise BadRow("wrong-size", f"the images before and after have different sizes, {sizes}")
        record = {
            "id": key,
            "caption": caption,
            "instruction": instruction,
            "before": before.data,
            "after": after.data,
            "source": place,
            "provenance": json.dumps({"url": url}) if isinstance(url, str) and url else None,
        }
        return ReadyRow(record)


class EditFolderReader(EditPairs):
    """Folders `<name>/` with `prompt.json`, `<seed>_0.jpg` and `<seed>_1.jpg`, as `seeds.json` lists them.

    `seeds.json` names about ten thousand folders that the published archives do not hold; their pairs are told as
    `missing-file`. What it does not name is not part of the set.
    """

    def __init__(self, source: str | SourceFiles, storage: ImageStorage, pairs: str = "all") -> None:
        super().__init__(source, storage)
        self.pairs = pairs

    def describe(self) -> dict[str, Any]:
        return self.described("InstructPix2Pix folders", self.pairs)

    def items(self) -> Iterator[Item]:
        listed_any = False
        before = None
        entry = self.files.entry(SEEDS)
        stamp = entry.stamp if entry else ""
        try:
            with self.files.open(SEEDS) as file:
                for number, element in enumerate(array_elements(file, SEEDS)):
                    item = self._item(number, element, stamp)
                    # The list is sorted, so a name that comes twice comes twice in a row.
                    yield item if item.key != before else _duplicate(item, number)
                    listed_any, before = True, item.key
        except DataError as error:
            if not listed_any:
                raise DataError(f"source: {error}; expected [[name, [seed, ...]], ...]") from error
            extra = json.dumps({"problem": ["malformed", str(error)]})
            yield Item(SEEDS, SEEDS, stamp=stamp, extra=extra)
        else:
            if not listed_any:
                raise DataError(f"source: {SEEDS} of {self.files.root} names no folders")

    def _item(self, number: int, element: Any, stamp: str) -> Item:
        told = json.dumps(element)[:200]
        if not (isinstance(element, list) and len(element) == 2 and isinstance(element[0], str) and element[0]):
            problem = ["malformed", f"entry {number} of {SEEDS} is {told}, not [name, [seed, ...]]"]
            return Item(f"{SEEDS}@{number}", SEEDS, stamp=stamp, extra=json.dumps({"problem": problem}))
        name, seeds = element
        if not (isinstance(seeds, list) and seeds and all(isinstance(seed, str | int) for seed in seeds)):
            problem = ["malformed", f"entry {number} of {SEEDS} is {told}, without a list of seeds"]
            return Item(name, name, stamp=stamp, extra=json.dumps({"problem": problem}))
        # Each once: a seed that is named twice is the same pair.
        chosen = list(dict.fromkeys(map(str, seeds)))[: 1 if self.pairs == "first" else None]
        if self.files.is_local:
            try:
                folder = self.files.entry(name)  # its time changes when files are unpacked into it
            except DataError:
                folder = None
            stamp = folder.stamp if folder else ""
        size = len(chosen) * _PAIR_BYTES
        return Item(name, name, rows=len(chosen), size=size, stamp=stamp, extra=json.dumps({"seeds": chosen}))

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for item in items:
            extra = json.loads(item.extra)
            if "problem" in extra:
                reason, message = extra["problem"]
                yield rejected(item.key, item.place, reason, message, stage="read")
                continue
            prompt: Mapping[str, Any] | BadRow
            try:
                prompt = self._prompt(item.place)
            except BadRow as error:
                prompt = error
            for seed in extra["seeds"]:
                yield self._pair(item.place, seed, prompt)

    def _pair(self, name: str, seed: str, prompt: Mapping[str, Any] | BadRow) -> SourceRow:
        key = f"{name}/{seed}"
        try:
            if isinstance(prompt, BadRow):
                raise prompt
            images = (self._image(f"{key}_0.jpg"), self._image(f"{key}_1.jpg"))
            # Published prompts say `input`, those of the published generator `caption`.
            texts = (prompt["input"] if prompt.get("input") else prompt.get("caption"), prompt.get("edit"))
            return self.record(key, name, texts, images, prompt.get("url"))
        except BadRow as error:
            return rejected(key, name, error.reason, str(error), stage="read")
        except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
            return rejected(key, name, *refusal(error))

    def _prompt(self, name: str) -> Mapping[str, Any]:
        try:
            value = json.loads(self._file(f"{name}/prompt.json", _PROMPT_BYTES))
        except UnicodeDecodeError as error:
            raise BadRow("encoding", f"{name}/prompt.json is not UTF-8 ({error.reason})") from error
        except (ValueError, RecursionError) as error:
            raise BadRow("malformed", f"{name}/prompt.json is no JSON ({' '.join(str(error).split())})") from error
        if not isinstance(value, dict):
            raise BadRow("malformed", f"{name}/prompt.json holds a {type(value).__name__}, not an object")
        return value

    def _image(self, path: str) -> bytes:
        return self._file(path, self.storage.limits.encoded_bytes)

    def _file(self, path: str, limit: int) -> bytes:
        try:
            entry = self.files.entry(path)
        except DataError as error:
            raise BadRow("escapes", str(error)) from error
        if entry is None:
            raise BadRow("missing-file", f"there is no file {path}")
        if entry.size > limit:
            raise BadRow("unreadable", f"{path} has {entry.size:,} bytes, the limit is {limit:,}")
        return self.files.read(path)


class EditParquetReader(EditPairs):
    """Parquet files with `original_prompt`, `original_image`, `edit_prompt`, `edited_image`: one pair a prompt."""

    def __init__(self, source: str | SourceFiles, storage: ImageStorage) -> None:
        super().__init__(source, storage)
        self.tables = Tables(self.files, (".parquet",), longest=0)

    def describe(self) -> dict[str, Any]:
        return self.described("InstructPix2Pix Parquet", "all")

    def items(self) -> Iterator[Item]:
        return self.tables.items(self._fit)

    def _fit(self, head: TableHead) -> Fitting:
        missing = [name for name in COLUMNS if name not in head.names]
        if missing:
            raise DataError(
                f"{head.path} has no column {', '.join(missing)}; InstructPix2Pix has {', '.join(COLUMNS)}, "
                f"this file {listed(head.names)}"
            )
        return Fitting(COLUMNS)

    def read(self, items: Sequence[Item]) -> Iterator[SourceRow]:
        for row in self.tables.rows(items):
            if row.values is None:
                yield row.refused()
                continue
            try:
                texts = (row.values["original_prompt"], row.values["edit_prompt"])
                images = (_bytes(row.values, "original_image"), _bytes(row.values, "edited_image"))
                yield self.record(row.id, row.place, texts, images)
            except BadRow as error:
                yield row.refused(error.reason, str(error))
            except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
                yield rejected(row.id, row.place, *refusal(error))


def _duplicate(item: Item, number: int) -> Item:
    problem = ["duplicate", f"{SEEDS} names {item.key[:200]} twice in a row"]
    return item._replace(key=f"{item.key}@{number}", rows=1, size=0, extra=json.dumps({"problem": problem}))


def _bytes(values: Mapping[str, Any], name: str) -> bytes:
    value = values[name]
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(data, bytes):
        raise BadRow("missing-image", f"the column {name} has no bytes of an image")
    return data


def _words(value: Any, reason: str, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRow(reason, f"{what} is {'empty' if isinstance(value, str) or value is None else 'no text'}")
    text = " ".join(value.split())
    if len(text) > _CHARACTERS:
        raise BadRow("too-long", f"{what} has {len(text):,} characters, the most is {_CHARACTERS:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("encoding", f"{what} is not valid Unicode ({error.reason})") from error
    return text


@dataclass(frozen=True)
class InstructPix2Pix:
    """The entry of `SOURCES`: pairs of images with an instruction that leads from one to the other."""

    steps: ClassVar[tuple[str, ...]] = ()
    hints: ClassVar[tuple[str, ...]] = ()

    pairs: Literal["all", "first"] = "all"
    """Pairs that are taken of a prompt, which has up to four in the folders; in Parquet it has one."""
    image_size: int = 512
    """Longest side in pixels of stored images; smaller ones are never enlarged."""
    quality: int | None = None
    """JPEG quality at which all images are encoded anew; null keeps the published bytes (quality 100)."""

    def __post_init__(self) -> None:
        ImageStorage(self.image_size, self.quality)

    def open(self, path: str | None) -> dict[str, Reader]:
        """One reader, of the layout that is there. Raises DataError when it is neither."""
        source = required(path)
        files = SourceFiles(source)
        storage = ImageStorage(self.image_size, self.quality)
        if not files.is_file and files.entry(SEEDS) is not None:
            return {"edit": EditFolderReader(source, storage, self.pairs)}
        if next(files.walk((".parquet",)), None) is not None:
            return {"edit": EditParquetReader(source, storage)}
        packed = next(files.walk((".zip",)), None)
        hint = f"; unpack {packed.path} and the other archives into that folder first" if packed else ""
        raise DataError(
            f"source: {files.root} holds neither {SEEDS} with folders beside it nor .parquet files, so it is no "
            f"InstructPix2Pix set{hint}"
        )
