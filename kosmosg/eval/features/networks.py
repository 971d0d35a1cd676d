"""What feature networks see in images and texts: DINO, CLIP and the Inception of FID behind one small interface.

A network is opened from a local folder or file, or by its Hub id; which file of weights was read is told by its sha256,
because two files of one name have been two networks before. Nothing is ever started with missing weights.

    networks = {"dino": open_network("dino", "facebook/dino-vits16")}
    features = extract([Path("a.png"), Path("b.png")], networks)["dino"]   # (2, 384)

Letters: N images or texts, D feature dimensions.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.eval.features.inception import FILE, Inception
from kosmosg.eval.features.preprocessing import crop_square, crop_square_plain, imagenet, resize_clean, resize_tf1
from kosmosg.eval.protocol import CLIP, DINO, INCEPTION
from kosmosg.prompt import read_image

Features = npt.NDArray[np.float32]  # (N, D)
_BATCH = 16  # photos of DreamBench have 12 megabytes each when decoded
_KINDS = {DINO: "vit", CLIP: "clip"}  # `model_type` in config.json
_FILES = ("*.json", "*.txt", "*.safetensors", "pytorch_model.bin")


class Network(Protocol):
    """Anything that makes features of images."""

    def pictures(self, images: Sequence[Image.Image]) -> Features:
        """(N, D), one row an RGB image of any size."""
        ...


@dataclass(frozen=True)
class Framing:
    """How an image is prepared for FID, see `kosmosg.eval.features.preprocessing`."""

    resize: str
    """`tf1` or `clean`: the way to 299 x 299."""
    crop: str = ""
    """Before that: nothing, `plain` (shorter side 256 without antialias, centre square) or `smooth` (with it)."""

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as (3, 299, 299), 0..255."""
        pixels = np.asarray(crop_square(image, 256) if self.crop == "smooth" else image)
        if self.crop == "plain":
            pixels = crop_square_plain(pixels, 256)
        resized = resize_clean(pixels) if self.resize == "clean" else resize_tf1(pixels)
        return torch.from_numpy(resized).permute(2, 0, 1)


def open_network(name: str, source: str, framing: Framing | None = None) -> Network:
    """The network `dino`, `clip` or `inception`, from a folder, file or Hub id. Raises CheckpointError, ConfigError."""
    if name == DINO:
        return Dino(source)
    if name == CLIP:
        return ClipPictures(source)
    if name == INCEPTION:
        return InceptionPictures(source, framing or Framing("clean"))
    raise ConfigError(f"there is no feature network {name!r}; known: {DINO}, {CLIP}, {INCEPTION}")


def extract(paths: Sequence[Path], networks: Mapping[str, Network]) -> dict[str, Features]:
    """Features (N, D) of image files by every network; each file is read once. Raises ImageError, ConfigError."""
    if not paths:
        raise ConfigError("there are no images to extract features from; give at least one file")
    parts: dict[str, list[Features]] = {name: [] for name in networks}
    for start in range(0, len(paths), _BATCH):
        images = [read_image(path, name=path.parent.name) for path in paths[start : start + _BATCH]]
        for name, network in networks.items():
            parts[name].append(network.pictures(images))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


class Dino:
    """DINO ViT in transformers' layout: the last state of its class token."""

    def __init__(self, source: str) -> None:
        from transformers import ViTModel

        self.model = _load(ViTModel, source, DINO, add_pooling_layer=False)

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Features:
        pixels = torch.stack([imagenet(image) for image in images]).to(self.model.device)
        other_size = int(self.model.config.image_size) != pixels.shape[-1]
        return _array(self.model(pixels, interpolate_pos_encoding=other_size).last_hidden_state[:, 0])


class ClipPictures:
    """CLIP's projected image embedding, the image prepared by CLIP's own processor."""

    def __init__(self, source: str) -> None:
        from transformers import CLIPModel

        # The processor that works on PIL images: the one on tensors resizes differently.
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        self.model = _load(CLIPModel, source, CLIP)
        self.processor = _read(CLIPImageProcessorPil, source, CLIP)

    @torch.no_grad()
    def pictures(self, images: Sequence[Image.Image]) -> Features:
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        return _array(self.model.visual_projection(self.model.vision_model(pixels).pooler_output))


class ClipTexts:
    """CLIP's projected text embedding."""

    def __init__(self, source: str) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.model = _load(CLIPModel, source, CLIP)
        self.tokenizer = _read(CLIPTokenizer, source, CLIP)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Features:
        """(N, D); what is beyond CLIP's 77 tokens is cut, as its processor does."""
        longest = int(self.model.config.text_config.max_position_embeddings)
        parts = []
        for start in range(0, len(texts), _BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            states = self.model.text_model(**tokens.to(self.model.device)).pooler_output
            parts.append(_array(self.model.text_projection(states)))
        return np.concatenate(parts)


class InceptionPictures:
    """Pooled features of FID's Inception."""

    def __init__(self, source: str, framing: Framing) -> None:
        self.framing = framing
        self.model = Inception.load(source).to(device())

    def pictures(self, images: Sequence[Image.Image]) -> Features:
        pixels = torch.stack([self.framing(image) for image in images])
        return _array(self.model(pixels.to(device())))


# -- where weights are -------------------------------------------------------------------------------------------------


def find_weights(name: str, source: str) -> str:
    """The local folder or file behind a folder, file or Hub id; downloads where needed. Raises CheckpointError."""
    setting = f"evaluate.weights.{name}"
    path = Path(source)
    if name == INCEPTION:
        if not path.is_file():
            raise CheckpointError(f"{setting}: there is no file {source}; give the path of {FILE} (of pytorch-fid)")
        return str(path.absolute())
    if path.is_dir():
        return str(path.absolute())
    try:
        return str(snapshot_download(source, allow_patterns=list(_FILES)))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{setting}: {source} is neither a folder nor a reachable Hub id; give the folder of a download "
            f"({str(error).splitlines()[0]})"
        ) from error


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


# -- loading ----------------------------------------------------------------------------------------------------------


def _load(kind: Any, source: str, name: str, **options: Any) -> Any:
    """`kind.from_pretrained`, where transformers would start missing weights at random with a mere warning."""
    folder = find_weights(name, source)
    _check_kind(Path(folder), name)
    try:
        model, told = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"evaluate.weights.{name}: {folder} is no {kind.__name__} ({reason})") from error
    missing = sorted(told["missing_keys"]) + sorted(str(key[0]) for key in told["mismatched_keys"])
    if missing:
        raise CheckpointError(
            f"evaluate.weights.{name}: {folder} lacks {missing[0]} of a {kind.__name__}, or has it in another "
            "size; give the folder of such a model, in transformers' layout"
        )
    return model.eval().requires_grad_(False).to(device())


def _check_kind(folder: Path, name: str) -> None:
    """transformers would build another model from whatever config it finds, of the size of its own defaults."""
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"evaluate.weights.{name}: {folder} has no config.json; give a folder that has")
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    if kind != _KINDS[name]:
        raise CheckpointError(
            f"evaluate.weights.{name}: {folder} holds a model of type {kind!r}, needed is {_KINDS[name]!r} in "
            "transformers' layout"
        )


def _read(kind: Any, source: str, name: str) -> Any:
    folder = find_weights(name, source)
    try:
        return kind.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"evaluate.weights.{name}: {folder} has no usable files of a {kind.__name__}; download all of its *.json "
            f"and *.txt ({str(error).splitlines()[0]})"
        ) from error


def _array(features: Tensor) -> Features:
    found: Features = features.float().cpu().numpy()
    return found
