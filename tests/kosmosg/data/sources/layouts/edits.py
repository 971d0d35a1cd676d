"""Small copies of InstructPix2Pix in both of its layouts, with what must become of every pair."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.kosmosg.data.sources.layouts.captions import bad_image
from tests.kosmosg.data.sources.layouts.images import encoded


@dataclass
class EditCopy:
    """What was written, and what must come of it: id -> reason, "" for good ones."""

    folder: Path
    truth: dict[str, str] = field(default_factory=dict)


def folders(folder: Path, count: int = 50, damage: float = 0.3, seed: int = 0, absent: float = 0.1) -> EditCopy:
    """`seeds.json` and a folder a prompt; some folders are named and not there, some are there and not named."""
    copy = EditCopy(folder)
    folder.mkdir(parents=True)
    chance = random.Random(seed)
    seeds = []
    for number in range(count):
        name = f"shard-{number % 3:02d}/{number:07d}" if number % 5 == 0 else f"{number:07d}"
        pairs = [str(chance.randrange(10**9)) for _ in range(chance.randrange(1, 5))]
        seeds.append([name, pairs])
        if chance.random() < absent:
            copy.truth |= {f"{name}/{pair}": "missing-file" for pair in pairs}
            continue
        place = folder / name
        place.mkdir(parents=True)
        prompt = {"input" if number % 2 else "caption": f"a dog {number}", "edit": "make it a cat", "output": "a cat"}
        prompt["url"] = f"https://example.org/{number}"
        text = json.dumps(prompt)
        whole = ""
        if chance.random() < damage / 2:
            whole = chance.choice(["malformed", "no-instruction", "no-caption", "encoding", "missing-file"])
            if whole == "malformed":
                text = text[:-4]
            elif whole == "encoding":
                text = text.replace("make it", "caf\udce9")
            elif whole != "missing-file":
                prompt["edit" if whole == "no-instruction" else "input" if number % 2 else "caption"] = ""
                text = json.dumps(prompt)
        if whole != "missing-file":
            (place / "prompt.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        (place / "metadata.jsonl").write_text("{}\n")
        (place / "1_0.jpg").write_bytes(encoded(1))
        for pair in pairs:
            before, after, reason = encoded(number), encoded(number + 1), whole
            if not whole and chance.random() < damage:
                reason = chance.choice(["unreadable", "wrong-size", "missing-file"])
                after = encoded(number, (20, 30)) if reason == "wrong-size" else bad_image(number, chance)
            (place / f"{pair}_0.jpg").write_bytes(before)
            if reason != "missing-file" or whole:
                (place / f"{pair}_1.jpg").write_bytes(after)
            copy.truth[f"{name}/{pair}"] = reason
    (folder / "seeds.json").write_text(json.dumps(seeds))
    return copy


def parquet(folder: Path, count: int = 60, damage: float = 0.3, seed: int = 0) -> EditCopy:
    """The Hub's columns."""
    copy = EditCopy(folder)
    (folder / "data").mkdir(parents=True)
    chance = random.Random(seed)
    columns: dict[str, list[object]] = {name: [] for name in ("original_prompt", "original_image", "edit_prompt")}
    columns |= {"edited_prompt": [], "edited_image": []}
    for number in range(count):
        row: list[object] = ["a dog", encoded(number), "make it a cat", "a cat", encoded(number + 1)]
        reason = ""
        if chance.random() < damage:
            reason = chance.choice(["unreadable", "missing-image", "no-instruction", "no-caption", "wrong-size"])
            if reason in ("unreadable", "missing-image"):
                row[1] = bad_image(number, chance) if reason == "unreadable" else None
            elif reason == "wrong-size":
                row[4] = encoded(number, (10, 10))
            else:
                row[2 if reason == "no-instruction" else 0] = None
        for (name, values), value in zip(columns.items(), row, strict=True):
            values.append({"bytes": value, "path": None} if name.endswith("image") else value)
        copy.truth[f"data/train-00000-of-00001-57cebf95b4a9170c.parquet:{number}"] = reason
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = {name: pa.array(values, kind if "image" in name else pa.string()) for name, values in columns.items()}
    pq.write_table(
        pa.table(arrays), folder / "data" / "train-00000-of-00001-57cebf95b4a9170c.parquet", row_group_size=25
    )
    return copy
