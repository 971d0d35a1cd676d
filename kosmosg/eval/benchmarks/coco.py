"""Captions and real images of an FID: COCO's val2014 with the published subset, or any folder of captions and images.

<folder>/annotations/captions_val2014.json, <folder>/val2014/*.jpg    COCO as it is downloaded
<folder>/captions.jsonl   {"caption": "...", "image": "000001.jpg"} a line; "image" is optional
<folder>/captions.tsv     caption, or image and caption with a tab between them, a line
<folder>/images/*.jpg     the real images of the two latter
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmosg.errors import DataError
from kosmosg.eval.baselines import COCO_FID, LABEL
from kosmosg.eval.benchmarks.base import (
    BenchmarkCase,
    BenchmarkSettings,
    Features,
    ImagesToRead,
    ScorePage,
    spread_out,
)
from kosmosg.eval.features.preprocessing import Framing
from kosmosg.eval.metrics.fid import Moments, frechet_distance
from kosmosg.eval.protocol import ALL_PLAIN, IN_ORDER, INCEPTION, OWN_SMOOTH, Protocol

ANNOTATIONS = Path("annotations/captions_val2014.json")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_REMEDY = (
    "give COCO's folder (annotations/captions_val2014.json and val2014/), or one with captions.jsonl or captions.tsv "
    "and images/"
)


@dataclass(frozen=True)
class ReferenceCaption:
    """A caption and, where the folder tells it, the real image that it describes."""

    text: str
    image: Path | None


@dataclass(frozen=True)
class ReferenceCaptions:
    """All captions and images of a folder."""

    captions: tuple[ReferenceCaption, ...]
    images: tuple[Path, ...]
    """Every real image of the folder, whether a caption names it or not."""
    origin: str
    """`val2014`, or the name of a plain folder."""


def read_folder(folder: Path) -> ReferenceCaptions:
    """COCO's val2014 or a plain folder. Raises DataError with what is missing."""
    if not folder.is_dir():
        raise DataError(f"evaluate.data: there is no folder {folder}; {_REMEDY}")
    for path in (folder / ANNOTATIONS, folder / ANNOTATIONS.name):
        if path.is_file():
            return _read_coco(folder, path)
    for name, read in (("captions.jsonl", _read_jsonl), ("captions.tsv", _read_tsv)):
        if (folder / name).is_file():
            return _read_plain(folder, read(folder / name))
    raise DataError(f"evaluate.data: {folder} holds no captions; {_REMEDY}")


def published_subset(captions: Sequence[ReferenceCaption], count: int, seed: int = 0) -> list[ReferenceCaption]:
    """The captions that Kosmos-G used: `random.seed(0); random.sample(annotations, 30000)`, from all captions of all
    images, so that some images occur more than once and many not at all. Raises DataError.
    """
    if count > len(captions):
        raise DataError(
            f"evaluate.prompts: {count} captions are asked for, the folder has {len(captions)}; set it to that or less"
        )
    return random.Random(seed).sample(list(captions), count)


def first(captions: Sequence[ReferenceCaption], count: int | None) -> list[ReferenceCaption]:
    """The first captions of the folder; None takes all. Raises DataError if there are fewer."""
    if count is not None and count > len(captions):
        raise DataError(
            f"evaluate.prompts: {count} captions are asked for, the folder has {len(captions)}; set it to that or less"
        )
    return list(captions[:count])


def own_images(captions: Sequence[ReferenceCaption]) -> list[Path]:
    """The images that captions describe, each once, in order. Raises DataError if a caption has none."""
    for number, caption in enumerate(captions):
        if caption.image is None:
            raise DataError(
                f"evaluate.data: caption {number} ({caption.text[:40]!r}) names no image, and this protocol compares "
                'with the captions\' own; write {"caption": ..., "image": ...} into captions.jsonl'
            )
    return list(dict.fromkeys(caption.image for caption in captions if caption.image is not None))


def digest_captions(captions: Sequence[ReferenceCaption], reals: Sequence[Path]) -> str:
    """Digest of the data: every caption, and name and size of every real image.

    The contents of 40,504 images are not read just for an id; images that were saved again have other sizes.
    """
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(f"{caption.text}\n".encode())
    for path in sorted(reals, key=lambda path: path.name):
        digest.update(f"{path.name}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _read_coco(folder: Path, path: Path) -> ReferenceCaptions:
    content = _json(path.read_text(encoding="utf-8"), str(path))
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions = [(entry["caption"], names[entry["image_id"]]) for entry in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"evaluate.data: {path} is not COCO's captions file (it lacks {error}); download it") from None
    place = folder / "val2014"
    if not place.is_dir():
        raise DataError(f"evaluate.data: there is no folder {place} with the images of {path.name}; unpack it there")
    there = {entry.name for entry in place.iterdir()}
    missing = [name for name in names.values() if name not in there]
    if missing:
        raise DataError(
            f"evaluate.data: {place} lacks {len(missing)} of {len(names)} images, the first is {missing[0]}; "
            "unpack val2014.zip again"
        )
    return ReferenceCaptions(
        tuple(ReferenceCaption(text, place / name) for text, name in captions),
        tuple(place / name for name in names.values()),
        "val2014",
    )


def _read_plain(folder: Path, captions: list[tuple[str, str | None]]) -> ReferenceCaptions:
    place = folder / "images"
    images = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES) if place.is_dir() else []
    if not images:
        raise DataError(f"evaluate.data: {place} holds no images ({', '.join(SUFFIXES)}); put the real ones there")
    there = {path.name for path in images}
    for text, name in captions:
        if name is not None and name not in there:
            raise DataError(f"evaluate.data: {place} has no {name}, which the caption {text[:40]!r} names; copy it")
    if not captions:
        raise DataError(f"evaluate.data: {folder} holds a file of captions without any; write one on each line")
    return ReferenceCaptions(
        tuple(ReferenceCaption(text, place / name if name else None) for text, name in captions),
        tuple(images),
        folder.name,
    )


def _read_jsonl(path: Path) -> list[tuple[str, str | None]]:
    captions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        entry = _json(line, f"{path}, line {number}")
        if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str):
            raise DataError(f'{path}, line {number} is not {{"caption": "...", "image": "..."}}')
        image = entry.get("image")
        captions.append((entry["caption"], None if image is None else str(image)))
    return captions


def _read_tsv(path: Path) -> list[tuple[str, str | None]]:
    captions: list[tuple[str, str | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        cells = line.rstrip("\r").split("\t")
        if cells == [""]:
            continue
        if len(cells) > 2:
            raise DataError(f"{path}, line {number} has {len(cells)} columns; write a caption, or image, tab, caption")
        captions.append((cells[-1], cells[0] if len(cells) == 2 else None))
    return captions


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"evaluate.data: {where} is not JSON ({error}); save it again") from None


FEW = 2048
"""Images below which the covariance of Inception's features is singular."""


class CocoFid:
    """FID on captions as `kosmosg.eval.benchmarks.base.Benchmark`: Frechet distance between generated and real."""

    weights: Mapping[str, str] = {}

    def __init__(self, protocol: Protocol, settings: BenchmarkSettings) -> None:
        held = read_folder(settings.require_data(protocol))
        if protocol.prompts == IN_ORDER:
            chosen = first(held.captions, protocol.count)
        else:
            chosen = published_subset(held.captions, protocol.count or len(held.captions), protocol.seed)
            protocol = protocol.changed(subset=held.origin)
        self.protocol = protocol
        real = own_images(chosen) if protocol.reference == OWN_SMOOTH else list(held.images)
        plain = protocol.reference == ALL_PLAIN
        self.data_digest = digest_captions(chosen, real)
        self.cases = [BenchmarkCase("all", caption.text) for caption in chosen]
        self.networks: Mapping[str, Framing | None] = {INCEPTION: Framing(protocol.resize, "" if plain else "smooth")}
        framing = Framing(protocol.resize, "plain" if plain else "smooth")
        self.references = {"the real images": ImagesToRead(tuple(real), {INCEPTION: framing})}

    def in_words(self) -> None:
        """The prompts are text already."""
        return None

    def score(
        self, files: Sequence[Path], features: Mapping[str, Features], real: Mapping[str, Mapping[str, Features]]
    ) -> list[dict[str, Any]]:
        """One row."""
        reference = real["the real images"][INCEPTION]
        distance = frechet_distance(Moments.of(features[INCEPTION]), Moments.of(reference))
        return [{"set": "all", "pictures": len(files), "real": len(reference), "fid": distance}]

    def shown(self, rows: int) -> list[int]:
        """The first captions."""
        return spread_out(len(self.cases), 1, rows)

    def page(self, rows: Sequence[Mapping[str, Any]]) -> ScorePage:
        """The distance, beside published rows."""
        few = min(row["pictures"] for row in rows)
        note = f" {few} images are too few for a meaningful number; FID falls as the number grows."
        cells = [
            [row["variant"], row["protocol"], str(row["pictures"]), str(row["real"]), f"{row['fid']:.2f}"]
            for row in rows
        ]
        return ScorePage(
            headlines={row["variant"]: f"FID {row['fid']:.2f} of {row['pictures']} images" for row in rows},
            reading="Frechet distance between Inception features of generated and real images; lower is better."
            + (note if few < FEW else ""),
            scores=(["model", "protocol", "images", "real images", "FID"], cells),
            published=(["method", "protocol", "FID"], [[row.method, LABEL, f"{row.fid:.2f}"] for row in COCO_FID]),
        )
