"""Every layout of sources through two Ray nodes: `python layouts_build.py FOLDER COUNT DAMAGE`, a line of JSON each.

What comes out of each build (record or rejection, by id) is compared with the truth table of the copy it was made of.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from kosmosg.data.annotators.base import EntityMask, EntitySpans, Sample, Span
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.sources.base import Source
from kosmosg.data.sources.caption_table import CaptionTable
from kosmosg.data.sources.img2dataset import Img2Dataset
from kosmosg.data.sources.instruct_pix2pix import InstructPix2Pix
from kosmosg.data.sources.interleaved import Interleaved
from kosmosg.data.sources.open_images import OpenImages
from kosmosg.data.sources.webdataset import WebDataset
from kosmosg_platform.datasets.build import BuildSettings, build
from kosmosg_platform.datasets.dataset import RecordDataset, read_manifest
from kosmosg_platform.datasets.steps import PipelineStep
from tests.kosmosg.data.sources.layouts import captions, edits, img2dataset, open_images, pages

Make = Callable[[Path, int, float], tuple[dict[str, str], Source]]


class Caption:
    name = "caption"

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        return ["a thing" for _ in samples]


class Entities:
    name = "entities"

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans]:
        return [EntitySpans([Span("thing", 2, 7)], []) for _ in samples]


class Masks:
    name = "masks"

    def __call__(self, samples: Sequence[Sample]) -> list[list[EntityMask]]:
        return [[EntityMask(np.full((s.image.height, s.image.width), 255, np.uint8))] for s in samples]


STEPS = (
    PipelineStep("caption", Caption, 8, "caption"),
    PipelineStep("entities", Entities, 64, "entities"),
    PipelineStep("masks", Masks, 8, "masks", actors=(1, 2), cpus=0.5),
)
SETTINGS = BuildSettings(
    STEPS, ComposeOptions(dilate=0.0, min_area=0.0, max_area=1.0), {}, shard_rows=500, chunk_rows=50, max_refused=0.9
)


def downloaded(form: Callable[..., img2dataset.Copy], source: Source) -> Make:
    def make(folder: Path, count: int, damage: float) -> tuple[dict[str, str], Source]:
        return form(folder, shards=2, count=count // 2, damage=damage).truth, source

    return make


def table(form: Callable[..., captions.Copy]) -> Make:
    return lambda folder, count, damage: (form(folder, count, damage).truth, CaptionTable(kind="caption"))


def edited(form: Callable[..., edits.EditCopy]) -> Make:
    return lambda folder, count, damage: (form(folder, count, damage).truth, InstructPix2Pix())


def paged(form: Callable[..., pages.PageCopy]) -> Make:
    def make(folder: Path, count: int, damage: float) -> tuple[dict[str, str], Source]:
        images = folder.with_name(f"{folder.name}-images")
        return form(folder, images, count, damage).truth, Interleaved(images=str(images))

    return make


def listed(form: str) -> Make:
    return lambda folder, count, damage: (open_images.write(folder, count, damage, form=form).truth, OpenImages())


LAYOUTS: dict[str, Make] = {
    "WebDataset tars": downloaded(img2dataset.webdataset, WebDataset(kind="caption")),
    "img2dataset files": downloaded(img2dataset.files, Img2Dataset(kind="caption")),
    "img2dataset Parquet": downloaded(img2dataset.parquet, Img2Dataset(kind="caption")),
    "Open Images folders": listed("split"),
    "Open Images tars": listed("tar"),
    "InstructPix2Pix folders": edited(edits.folders),
    "InstructPix2Pix Parquet": edited(edits.parquet),
    "CC3M": table(captions.cc3m),
    "Kosmos TSV": table(captions.kosmos),
    "JSON lines": table(captions.jsonl),
    "CSV": table(captions.table_csv),
    "Parquet table": table(captions.parquet),
    "OBELICS": paged(pages.obelics),
    "MMC4": paged(pages.mmc4),
}


def outcome(folder: Path) -> Counter[tuple[str, str]]:
    """How often each id came out, as a record ("") or with a reason."""
    found = Counter((str(record["id"]), "") for record in RecordDataset(folder))
    for path in folder.glob("quarantine/*.parquet"):
        for row in pq.read_table(path, columns=["id", "reason"]).to_pylist():
            found[row["id"], row["reason"]] += 1
    return found


def main(folder: Path, count: int, damage: float) -> None:
    """Build them all."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    for number, (layout, make) in enumerate(LAYOUTS.items()):
        truth, source = make(folder / f"source-{number}", count, damage)
        (reader,) = source.open(str(folder / f"source-{number}")).values()
        shaped = SETTINGS if reader.annotated else replace(SETTINGS, steps=())
        result = build(folder / f"set-{number}", reader, shaped)
        found, expected = outcome(result.folder), Counter(truth.items())
        told: dict[str, Any] = {
            "layout": layout,
            "counts": read_manifest(result.folder)["counts"],
            "rows": len(truth),
            "wrong": sorted(map(list, (found - expected) + (expected - found)))[:5],
            "rate": round(result.rate, 1),
        }
        print(json.dumps(told), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    # Ray's workers must find the annotators under a name that they can import.
    sys.path.insert(0, str(Path(__file__).parent))
    import layouts_build

    layouts_build.main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
