"""Feature extraction for many images on Ray actors; no features are computed twice.

An image set is a list of files and the networks that read them. Its features are stored in a folder named after both,
block by block, so that an interrupted evaluation resumes and the 40,504 real images of an FID are read only once.

    <folder>/<key>/view.json      files and networks
    <folder>/<key>/00012.npz      features of block 12, one array (N, D) a network
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kosmosg.errors import DataError
from kosmosg.eval.features.base import FeatureNetwork, Features, extract, open_network, weights_sha256
from kosmosg.eval.features.preprocessing import Framing
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.config import digest
from kosmosg_platform.inference.actors import run_blocks
from kosmosg_platform.storage import read_json, write_json

BLOCK = 64  # files


@dataclass(frozen=True)
class FeatureNetworkSpec:
    """A network: its kind (`dino`, `clip`, `inception`), local folder or file, and sha256; for FID also the framing."""

    network: str
    source: str
    sha256: str
    framing: Framing | None = None

    @classmethod
    def at(cls, network: str, source: str, framing: Framing | None = None) -> "FeatureNetworkSpec":
        """With the digest of the weights. Raises CheckpointError."""
        return cls(network, source, weights_sha256(source), framing)


@dataclass(frozen=True)
class ImageSet:
    """Image files, and the networks that read them."""

    files: tuple[Path, ...]
    looks: tuple[FeatureNetworkSpec, ...]

    @property
    def key(self) -> str:
        """Digest of the networks and of the files' names, sizes and times."""
        stats = [(str(path), path.stat()) for path in self.files]
        return digest(
            {
                "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
                "looks": [asdict(network) | {"source": ""} for network in self.looks],
            }
        )[:16]


def extract_features(views: Mapping[str, ImageSet], scale: ScaleConfig, folder: Path) -> dict[str, dict[str, Features]]:
    """Features of every image set: its name -> network -> (N, D), in the order of its files.

    All sets are processed together, so that every actor loads each network once. Ray must be up if something is
    missing. Raises DataError for a set without files, ImageError, CheckpointError.
    """
    keys = {name: view.key for name, view in views.items()}
    missing = []
    for name, view in views.items():
        if not view.files:
            raise DataError(f"evaluate.data: there are no images in {name}; give a folder that has some")
        store = folder / keys[name]
        blocks = [f"{keys[name]}/{block:05}" for block in range(math.ceil(len(view.files) / BLOCK))]
        absent = [block for block in blocks if not (folder / f"{block}.npz").is_file()]
        if absent:
            looks = [asdict(network) for network in view.looks]
            write_json(store / "view.json", {"files": [str(path.absolute()) for path in view.files], "looks": looks})
        missing += absent
    run_blocks("evaluate: features", "images", FeatureExtractor, str(folder), list(dict.fromkeys(missing)), scale)
    return {name: _read(folder / keys[name], view) for name, view in views.items()}


class FeatureExtractor:
    """Loads the networks that its blocks need and writes their features."""

    def __init__(self, folder: str) -> None:
        import torch

        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.folder = Path(folder)
        self.views: dict[str, dict[str, Any]] = {}
        self.networks: dict[tuple[Any, ...], FeatureNetwork] = {}

    def __call__(self, name: str) -> int:
        """Process one block, `key/number`; returns its number of files."""
        key, number = name.split("/")
        if key not in self.views:
            self.views[key] = read_json(self.folder / key / "view.json")
        view, start = self.views[key], int(number) * BLOCK
        files = [Path(file) for file in view["files"][start : start + BLOCK]]
        features: dict[str, Any] = extract(files, {entry["network"]: self._network(entry) for entry in view["looks"]})
        partial = self.folder / key / f"{number}.partial.npz"
        np.savez(partial, **features)
        partial.replace(self.folder / f"{name}.npz")
        return len(files)

    def _network(self, entry: dict[str, Any]) -> FeatureNetwork:
        framing = Framing(**entry["framing"]) if entry["framing"] else None
        known = (entry["network"], entry["source"], framing)
        if known not in self.networks:
            self.networks[known] = open_network(entry["network"], entry["source"], framing)
        return self.networks[known]


def _read(store: Path, view: ImageSet) -> dict[str, Features]:
    parts: dict[str, list[Features]] = {entry.network: [] for entry in view.looks}
    for block in range(math.ceil(len(view.files) / BLOCK)):
        with np.load(store / f"{block:05}.npz", allow_pickle=False) as kept:
            for network, arrays in parts.items():
                arrays.append(kept[network])
    return {network: np.concatenate(arrays) for network, arrays in parts.items()}


def digests(looks: Sequence[FeatureNetworkSpec]) -> dict[str, str]:
    """Network -> sha256 of its weights."""
    return {entry.network: entry.sha256 for entry in looks}
