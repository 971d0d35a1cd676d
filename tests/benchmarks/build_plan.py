"""How well a pilot predicts: a small build, the plan of one four times as large, and that build.

    python tests/benchmarks/build_plan.py            # some minutes on two cores

The images are crops of the photos of DreamBench (`$KOSMOSG_SHARED/data`), captions those of Flickr30k; steps are
`told`, `noun_chunks` and `clipseg`, a tiny one of random weights. Nothing here passes or fails.
"""

import argparse
import gzip
import json
import os
import random
import tempfile
from pathlib import Path

from PIL import Image

from kosmosg.data.composition import ComposeOptions
from kosmosg_platform.config import validate
from kosmosg_platform.datasets.build import BuildSettings, build
from kosmosg_platform.datasets.steps import BuildConfig
from kosmosg_platform.planning.build_plan import BuildPlanConfig, plan_build, read_pilot, render_build
from tests.tiny_annotators import tiny_clipseg

DATA = Path(os.environ.get("KOSMOSG_SHARED", "shared")) / "data"


def write_table(folder: Path, rows: int, seed: int) -> Path:
    """A table of captions with the paths of images beside it."""
    chance = random.Random(seed)
    photos = [Image.open(path).convert("RGB") for path in sorted((DATA / "dreambench").glob("*/*.jpg"))]
    with gzip.open(DATA / "captions" / "flickr30k.train.1.txt.gz", "rt", encoding="utf-8") as file:
        captions = [line.strip() for line in file]
    folder.mkdir(parents=True)
    with (folder / "table.jsonl").open("w", encoding="utf-8") as table:
        for number in range(rows):
            photo = chance.choice(photos)
            side = chance.randint(256, min(640, *photo.size))
            left, top = chance.randint(0, photo.width - side), chance.randint(0, photo.height - side)
            photo.crop((left, top, left + side, top + side)).save(folder / f"{number}.jpg", quality=90)
            table.write(json.dumps({"image": f"{number}.jpg", "caption": chance.choice(captions)}) + "\n")
    return folder


def main() -> None:
    """Build, plan, build, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128, help="of the pilot")
    parser.add_argument("--times", type=int, default=4, help="how much larger the other build is")
    given = parser.parse_args()
    import ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(tiny_clipseg(folder / "clipseg"))
        steps = [{"use": "told"}, {"use": "noun_chunks"}, {"use": "clipseg", "model": model, "device": "cpu"}]
        compose = ComposeOptions(min_area=0.0, max_area=1.0, threshold=0.01)
        config = validate(BuildConfig, {"source": {"use": "caption_table"}, "steps": steps, "chunk_rows": 16})
        config = config.model_copy(update={"compose": compose})
        source = config.opened_source()
        shaped = BuildSettings(
            config.pipeline_steps(source),
            compose,
            config.settings(source),
            shard_rows=64,
            chunk_rows=16,
            max_refused=1.0,
        )
        ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False)
        sizes = {"pilot": given.rows, "whole": given.rows * given.times}
        for seed, (part, rows) in enumerate(sizes.items()):
            (reader,) = source.open(str(write_table(folder / part, rows, seed))).values()
            build(folder / f"{part}-set", reader, shaped)
        pilot, whole = read_pilot(folder / "pilot-set"), read_pilot(folder / "whole-set")
        planned = BuildPlanConfig(images=whole.rows)
        plan = plan_build(planned, pilot, shaped.steps, shaped.plain, shaped.chunk_rows)
        print("\n".join(render_build(plan, pilot, planned)))
        found = sum(spent.cpu for spent in whole.costs.values())
        predicted = 3600 * sum(part.cpu_hours for part in plan.parts)
        print(f"CPU seconds: {predicted:.1f} planned, {found:.1f} measured, {predicted / found - 1:+.1%}")
        for kind, size in plan.stored.items():
            measured = whole.stored[kind]
            print(f"{kind}: {size:,.0f} bytes planned, {measured:,} measured, {size / measured - 1:+.1%}")
        ray.shutdown()


if __name__ == "__main__":
    main()
