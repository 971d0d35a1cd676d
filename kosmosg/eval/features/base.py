"""What feature networks see in images and texts: their protocol, their table, and how their weights are found.

A network is opened from a local folder or file, or by its Hub id; which file of weights was read is told by its sha256,
because two files of one name have been two networks before. Nothing is ever started with missing weights.

    networks = {"dino": open_network("dino", "facebook/dino-vits16")}
    features = extract([Path("a.png"), Path("b.png")], networks)["dino"]   # (2, 384)

Letters: N images or texts, D feature dimensions.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.eval.features.preprocessing import Framing
from kosmosg.plugins import load_entry
from kosmosg.prompt import read_image

Features = npt.NDArray[np.float32]  # (N, D)
BATCH = 16  # photos of DreamBench have 12 megabytes each when decoded
_FILES = ("*.json", "*.txt", "*.safetensors", "pytorch_model.bin")


class FeatureNetwork(Protocol):
    """Anything that makes features of images."""

    def __init__(self, source: str, framing: Framing | None = None) -> None:
        """Open the network from a folder, file or Hub id. `framing` is for networks that are read in several ways.

        Raises CheckpointError.
        """

    @staticmethod
    def find(source: str) -> str:
        """The local folder or file behind `source`; downloads where needed. Raises CheckpointError."""
        ...

    def images(self, images: Sequence[Image.Image]) -> Features:
        """(N, D), one row an RGB image of any size."""
        ...


FEATURE_NETWORKS: dict[str, str] = {
    "dino": "kosmosg.eval.features.dino:Dino",
    "clip": "kosmosg.eval.features.clip:ClipImages",
    "inception": "kosmosg.eval.features.inception:InceptionImages",
}
"""Name in a protocol -> `module:class` (a `FeatureNetwork`)."""


def open_network(name: str, source: str, framing: Framing | None = None) -> FeatureNetwork:
    """A network of the table, from a folder, file or Hub id. Raises CheckpointError, ConfigError."""
    network: FeatureNetwork = _entry(name)(source, framing)
    return network


def find_weights(name: str, source: str) -> str:
    """The local folder or file behind a folder, file or Hub id; downloads where needed. Raises CheckpointError."""
    found: str = _entry(name).find(source)
    return found


def extract(paths: Sequence[Path], networks: Mapping[str, FeatureNetwork]) -> dict[str, Features]:
    """Features (N, D) of image files by every network; each file is read once. Raises ImageError, ConfigError."""
    if not paths:
        raise ConfigError("there are no images to extract features from; give at least one file")
    parts: dict[str, list[Features]] = {name: [] for name in networks}
    for start in range(0, len(paths), BATCH):
        images = [read_image(path, name=path.parent.name) for path in paths[start : start + BATCH]]
        for name, network in networks.items():
            parts[name].append(network.images(images))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def weights_sha256(source: str) -> str:
    """sha256 of the file of weights in a local folder, or of the file itself; of several files, of their digests."""
    path = Path(source)
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(f"{source} holds neither model.safetensors nor pytorch_model.bin; download it again")
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def device() -> torch.device:
    """Where features are computed: a GPU where this process has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_features(tensor: Tensor) -> Features:
    """What a network gives, as float32 of numpy."""
    found: Features = tensor.float().cpu().numpy()
    return found


def _entry(name: str) -> Any:
    return load_entry(FEATURE_NETWORKS, name, "protocol.features")


class TransformersNetwork:
    """A network in transformers' layout: a folder or Hub id with config.json and weights."""

    name: ClassVar[str]
    """In `FEATURE_NETWORKS`, for messages."""
    model_type: ClassVar[str]
    """In config.json."""

    @classmethod
    def find(cls, source: str) -> str:
        """The local folder behind a folder or Hub id; downloads where needed. Raises CheckpointError."""
        path = Path(source)
        if path.is_dir():
            return str(path.absolute())
        try:
            return str(snapshot_download(source, allow_patterns=list(_FILES)))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"evaluate.weights.{cls.name}: {source} is neither a folder nor a reachable Hub id; give the folder of "
                f"a download ({str(error).splitlines()[0]})"
            ) from error

    @classmethod
    def load(cls, kind: Any, source: str, **options: Any) -> Any:
        """`kind.from_pretrained`, where transformers would start missing weights at random with a mere warning."""
        folder = cls.find(source)
        cls._check_kind(Path(folder))
        try:
            model, told = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"evaluate.weights.{cls.name}: {folder} is no {kind.__name__} ({reason})") from error
        missing = sorted(told["missing_keys"]) + sorted(str(key[0]) for key in told["mismatched_keys"])
        if missing:
            raise CheckpointError(
                f"evaluate.weights.{cls.name}: {folder} lacks {missing[0]} of a {kind.__name__}, or has it in another "
                "size; give the folder of such a model, in transformers' layout"
            )
        return model.eval().requires_grad_(False).to(device())

    @classmethod
    def load_processor(cls, kind: Any, source: str) -> Any:
        """A tokenizer or image processor from the same folder. Raises CheckpointError."""
        folder = cls.find(source)
        try:
            return kind.from_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"evaluate.weights.{cls.name}: {folder} has no usable files of a {kind.__name__}; download all of its "
                f"*.json and *.txt ({str(error).splitlines()[0]})"
            ) from error

    @classmethod
    def _check_kind(cls, folder: Path) -> None:
        """transformers would build another model from whatever config it finds, of the size of its own defaults."""
        config = folder / "config.json"
        if not config.is_file():
            raise CheckpointError(f"evaluate.weights.{cls.name}: {folder} has no config.json; give a folder that has")
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        if kind != cls.model_type:
            raise CheckpointError(
                f"evaluate.weights.{cls.name}: {folder} holds a model of type {kind!r}, needed is {cls.model_type!r} "
                "in transformers' layout"
            )
