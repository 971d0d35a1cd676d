"""Records made up from a seed, and dataset folders of them, for tests that need no build."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from kosmosg.data.image_bytes import encode_image, encode_mask
from kosmosg_platform.datasets.dataset import write_manifest, write_records, write_refusals

NOUNS = ("cat", "dog", "ball", "tree", "fish", "house", "gem")


def picture(random: Random, width: int, height: int) -> bytes:
    """An image of one colour, as PNG."""
    return encode_image(Image.new("RGB", (width, height), tuple(random.randrange(256) for _ in range(3))))


def composition(random: Random, number: int, words: str = "in the snow") -> dict[str, Any]:
    """One to three entities, each a square crop whose mask covers some of its rows."""
    width, height = random.randrange(24, 60), random.randrange(24, 60)
    caption, entities = "", []
    for noun in random.sample(NOUNS, random.randrange(1, 4)):
        caption += f"{' and ' if caption else ''}a {noun}"
        side = random.randrange(8, 20)
        left, top = random.randrange(0, width - side), random.randrange(0, height - side)
        mask = np.zeros((side, side), dtype=bool)
        mask[: random.randrange(1, side + 1)] = True
        entities.append(
            {
                "text": f"a {noun}",
                "start": len(caption) - len(noun) - 2,
                "end": len(caption),
                "box": [left, top, left + side, top + side],
                "crop": picture(random, side, side),
                "mask": encode_mask(mask),
                "score": random.random(),
            }
        )
    return {
        "id": f"photos/{number:04d}.jpg",
        "caption": f"{caption} {words}",
        "image": picture(random, width, height),
        "width": width,
        "height": height,
        "entities": entities,
        "source": f"photos/{number:04d}.jpg",
        "sha256": f"{number:064x}",
        "captioner": "captions of Some/captioner-2",
        "entity_finder": "nouns",
        "segmenter": "masks of Some/segmenter-1",
        "provenance": '{"licence": "CC BY 2.0", "author": "N. N."}' if number % 2 else None,
    }


def other(kind: str, random: Random, number: int, words: str = "in the snow") -> dict[str, Any]:
    """A record of kind caption, text, edit or interleaved."""
    text = f"a {random.choice(NOUNS)} number {number} {words}"
    size = (random.randrange(8, 40), random.randrange(8, 40))
    record: dict[str, Any] = {"id": f"{kind}/{number}", "source": f"{kind}.txt"}
    if kind == "caption":
        record |= {"text": text, "image": picture(random, *size), "width": size[0], "height": size[1]}
    elif kind == "text":
        record |= {"text": text}
    elif kind == "edit":
        record |= {"caption": text, "instruction": f"make it {random.choice(NOUNS)}"}
        record |= {"before": picture(random, *size), "after": picture(random, *size)}
    else:
        parts = [{"text": text, "image": None}, {"text": None, "image": picture(random, *size)}]
        record |= {"parts": parts * random.randrange(1, 3)}
    return record


def records(kind: str, count: int, seed: int = 0, words: str = "in the snow") -> list[dict[str, Any]]:
    """Records of a kind."""
    random = Random(seed)
    if kind == "composition":
        return [composition(random, number, words) for number in range(count)]
    return [other(kind, random, number, words) for number in range(count)]


def rejections(reasons: Mapping[str, int], message: str = "it cannot be used") -> list[dict[str, str]]:
    """Rejected rows, so many of each "stage: reason"."""
    rows = []
    for label, count in reasons.items():
        stage, _, reason = label.partition(": ")
        rows += [
            {"id": f"{reason}/{number}", "source": f"{reason}.jpg", "stage": stage, "reason": reason}
            | {"message": f"{reason}/{number}: {message}"}
            for number in range(count)
        ]
    return rows


def write_dataset(
    folder: Path,
    kind: str,
    rows: Sequence[Mapping[str, Any]],
    shards: int = 1,
    rejected: Sequence[Mapping[str, str]] = (),
    filters: Sequence[str] = (),
) -> Path:
    """A finished dataset folder; `filters` are the stages of rejected rows that count as filtered."""
    size = max(1, -(-len(rows) // shards))
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    written = [write_records(folder, f"data/part-{n:05d}.parquet", kind, part) for n, part in enumerate(parts)]
    size = max(1, -(-len(rejected) // shards))
    parts = [rejected[start : start + size] for start in range(0, len(rejected), size)]
    quarantine = [write_refusals(folder, f"quarantine/part-{n:05d}.parquet", part) for n, part in enumerate(parts)]
    refused: dict[str, int] = {}
    for row in rejected:
        label = f"{row['stage']}: {row['reason']}"
        refused[label] = refused.get(label, 0) + 1
    filtered = sum(row["stage"] in filters for row in rejected)
    total = len(rows) + len(rejected)
    write_manifest(
        folder,
        kind,
        written,
        quarantine,
        config={"steps": [{"use": "blip2", "model": "Some/captioner-2", "prompt": "a photo of"}, {"use": "nouns"}]},
        annotators={"captioner": "captions of Some/captioner-2"},
        source={"layout": "folder of photos", "source": "photos"},
        extra={
            "counts": {
                "read": total,
                "written": len(rows),
                "filtered": filtered,
                "quarantined": len(rejected) - filtered,
            },
            "refused": refused,
            "entities_left_out": {"too-small": 3} if kind == "composition" else {},
        },
    )
    return folder
