"""Small copies of Open Images V7: list, boxes, class descriptions and images, with what must become of every line."""

import csv
import io
import random
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.kosmosg.data.sources.layouts.images import bad_images, encoded, good_images
from tests.kosmosg.data.sources.layouts.img2dataset import add

HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation"
)
BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,"
    "XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
)
CLASSES = {"/m/011k07": "Tortoise", "/m/01g317": "Person", "/m/02wvth": 'Fiat 500 "topolino"', "/m/0bt9lr": "Dog"}
BY, SOME_RIGHTS = "https://creativecommons.org/licenses/by/2.0/", "https://creativecommons.org/licenses/by-nc/2.0/"


@dataclass
class Copy:
    """What was written, and what must come of it."""

    folder: Path
    truth: dict[str, str] = field(default_factory=dict)
    """Key -> reason, "" for good ones."""
    labels: dict[str, str] = field(default_factory=dict)
    """Key -> names of its boxes' classes."""
    titles: dict[str, str] = field(default_factory=dict)


def quoted(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def image_id(number: int) -> str:
    return f"{(number * 0x9E3779B97F4A7C15) % (1 << 64):016x}"


def cells(number: int, split: str, rotation: str, licence: str = BY) -> list[str]:
    title = ["die FNF-Kerze", 'a "quoted", title', "Три собаки", ""][number % 4]
    at = f"https://farm3.staticflickr.com/{number}"
    return [
        *(image_id(number), split, f"{at}_o.jpg", f"https://www.flickr.com/photos/x/{number}", licence),
        *("https://www.flickr.com/people/x/", f"Author {number}", title, "4405052", "KFukvivpCM5QXl5SqKe41g=="),
        *(f"{at}_z.jpg", rotation),
    ]


def write(
    folder: Path, count: int = 120, damage: float = 0.2, seed: int = 0, header: bool = True, form: str = "split"
) -> Copy:
    """A copy.

    Args:
        form: where images lie: "split" (train/ID.jpg), "flat" (ID.jpg) or "tar" (train_0.tar with train_0/ID.jpg).
    """
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    copy = Copy(folder)
    lines = [HEADER + "\n"] if header else []
    boxes = [BOXES + "\n"]
    files: dict[str, bytes] = {}
    for number in range(count):
        name = image_id(number)
        split = chance.choices(["train", "validation", "test"], [8, 1, 1])[0]
        key = f"{split}/{name}"
        rotation = chance.choices(["0.0", "90.0", "180.0", "270.0", "", "nan"], [20, 1, 1, 1, 1, 1])[0]
        row = cells(number, split, rotation, chance.choice([BY, BY, SOME_RIGHTS]))
        kind = chance.choice(["missing", "bytes", "rotation", "twice", "ragged"]) if chance.random() < damage else ""
        image = encoded(number)
        if chance.random() < 0.1:
            image = chance.choice(sorted(good_images(number).items()))[1]
        copy.truth[key] = ""
        if kind == "missing":
            copy.truth[key] = "missing-file"
        elif kind == "bytes":
            image = chance.choice(sorted(bad_images(number).items()))[1]
            copy.truth[key] = "unreadable"
        elif kind == "rotation":
            row[-1] = "45.0"
            copy.truth[key] = "malformed"
        elif kind == "ragged":
            row = row[:5]
            del copy.truth[key]
        if kind == "ragged":
            copy.truth[f"list.csv:{len(lines) + 1}"] = "malformed"
        lines.append(quoted(row))
        if kind == "twice":
            copy.truth[f"list.csv:{len(lines) + 1}"] = "duplicate"
            lines.append(quoted(row))
        if kind != "missing":
            files[f"{split}/{name}.jpg"] = image
        copy.titles[key] = row[7] if len(row) > 7 else ""
        classes = [chance.choice(sorted(CLASSES)) for _ in range(chance.randrange(5))]
        for label in classes:
            boxes.append(f"{name},xclick,{label},1,0.1,0.2,0.1,0.5,0,1,0,0,0,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1\n")
        boxes.append(f"{name},verification,/m/0bt9lr,0,0.1,0.2,0.1,0.5,0,1,0,0,0,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1\n")
        copy.labels[key] = ", ".join(sorted({CLASSES[label] for label in classes}))
    (folder / "list.csv").write_text("".join(lines), encoding="utf-8")
    metadata = folder / "annotations"
    metadata.mkdir(exist_ok=True)
    (metadata / "oidv6-train-annotations-bbox.csv").write_text("".join(boxes))
    described = "".join(quoted([label, name]) for label, name in CLASSES.items())
    (metadata / "class-descriptions-boxable.csv").write_text(described)
    place(folder, files, form)
    return copy


def place(folder: Path, files: dict[str, bytes], form: str) -> None:
    """Put images where they lie in one of the forms."""
    if form == "tar":
        for first in "0123456789abcdef":
            with tarfile.open(folder / f"train_{first}.tar", "w") as tar:
                for path, data in files.items():
                    name = path.rpartition("/")[2]
                    if name[0] == first:
                        add(tar, f"train_{first}/{name}", data)
        return
    for path, data in files.items():
        target = folder / (path if form == "split" else path.rpartition("/")[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
