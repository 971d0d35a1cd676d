"""A build that tests kill: `python killed_build.py SOURCE DEST NODES` on a Ray cluster of its own.

Its steps take a little time and need no weights: a captioner in two processes, entities, masks in two processes.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kosmosg.data.annotators.base import EntityMask, EntitySpans, Sample, Span
from kosmosg.data.composition import ComposeOptions
from kosmosg.data.files.store_file import store_patience
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg.errors import UnavailableError
from kosmosg_platform.datasets.build import BuildSettings, build
from kosmosg_platform.datasets.steps import PipelineStep


class Caption:
    name = "slow captions"

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        time.sleep(0.05)
        return [f"a {sample.hints['folder']}" for sample in samples]


class Entities:
    name = "entities"

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans]:
        return [EntitySpans([Span(s.caption[2:], 2, len(s.caption))], []) for s in samples]


class Masks:
    name = "slow masks"

    def __call__(self, samples: Sequence[Sample]) -> list[list[EntityMask]]:
        time.sleep(0.05)
        mask = np.zeros((16, 16), np.uint8)
        mask[4:12, 4:12] = 255
        return [[EntityMask(mask)] for _ in samples]


STEPS = (
    PipelineStep("caption", Caption, 8, "caption", key="c" * 16, keep=True, actors=(1, 2), cpus=0.5),
    PipelineStep("entities", Entities, 64, "entities", key="e" * 16),
    PipelineStep("masks", Masks, 8, "masks", key="m" * 16, actors=(1, 2), cpus=0.5),
)
SETTINGS = BuildSettings(STEPS, ComposeOptions(dilate=0.0), {"settings": 1}, shard_rows=40, chunk_rows=8)


def main(source: str, dest: str, nodes: int) -> None:
    """Build once."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        with store_patience(float(os.environ.get("STORE_PATIENCE", "60"))):
            reader = ImageFolderReader(source)
        settings = replace(SETTINGS, retry=os.environ.get("RETRY_REASON", ""))
        result = build(Path(dest), reader, settings, say=print)
    except UnavailableError as error:
        print(error, flush=True)
        ray.shutdown()
        cluster.shutdown()
        sys.exit(1)
    print("rows", result.rows, "refused", result.refused, "nodes", len(ray.nodes()), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    # Ray's workers must find the annotators under a name that they can import.
    sys.path.insert(0, str(Path(__file__).parent))
    import killed_build

    killed_build.main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
