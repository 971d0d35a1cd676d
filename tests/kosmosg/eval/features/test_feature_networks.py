"""Feature networks against transformers itself, FID's Inception against recorded values of torch-fidelity 0.4.0."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kosmosg.errors import CheckpointError, ConfigError, ImageError
from kosmosg.eval.features.base import extract, find_weights, open_network, weights_sha256
from kosmosg.eval.features.clip import ClipTexts
from kosmosg.eval.features.inception import Inception
from kosmosg.eval.features.preprocessing import Framing, imagenet
from kosmosg.eval.metrics.fid import cosine


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.png" for number in range(3)]
    for path, size in zip(paths, ((300, 260), (256, 256), (64, 90)), strict=True):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return paths


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole network with weights by formula; the classifier that the real file also holds."""
    weights = {}
    for number, (name, value) in enumerate(Inception().state_dict().items()):
        if "num_batches" in name:
            weights[name] = value
            continue
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + number).reshape(value.shape)
        if "running_var" in name or "bn.weight" in name:
            wave = 1 + 0.3 * wave
        else:
            wave = wave * ((2.0 / value[0].numel()) ** 0.5 if "conv" in name else 0.1)
        weights[name] = wave.float()
    weights |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(weights, path)
    return path


def test_clip_gives_what_transformers_whole_model_gives(tiny_clip: Path, photos: list[Path]) -> None:
    sentences = ["a cat in the snow", "a dog"]
    images = [Image.open(path).convert("RGB") for path in photos[:2]]
    tokens = CLIPTokenizer.from_pretrained(tiny_clip)(sentences, padding=True, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(tiny_clip)(images=images, return_tensors="pt")
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    with torch.no_grad():
        expected = model(**tokens, **pixels)
    cosines = expected.logits_per_image.diagonal() / model.logit_scale.exp().detach()
    seen = extract(photos[:2], {"clip": open_network("clip", str(tiny_clip))})["clip"]
    found = cosine(seen, ClipTexts(str(tiny_clip)).texts(sentences))
    assert np.allclose(found, cosines, atol=1e-5)


def test_clip_cuts_texts_that_are_too_long(tiny_clip: Path) -> None:
    texts = ClipTexts(str(tiny_clip))
    assert np.allclose(*texts.texts(["cat " * 200, "cat " * 90]), atol=1e-5)


def test_dino_is_the_class_token_of_the_prepared_picture(tiny_dino: Path, photos: list[Path]) -> None:
    model = ViTModel.from_pretrained(tiny_dino, add_pooling_layer=False).eval()
    pixels = torch.stack([imagenet(Image.open(path).convert("RGB")) for path in photos])
    with torch.no_grad():
        expected = model(pixels).last_hidden_state[:, 0].numpy()
    found = extract(photos, {"dino": open_network("dino", str(tiny_dino))})["dino"]
    assert found.shape == (3, 24)
    assert np.allclose(found, expected, atol=1e-5)


def test_inception_gives_what_torch_fidelity_gave(inception_file: Path) -> None:
    """Same weights, same image, resized as there: feature_extractor_inceptionv3.FeatureExtractorInceptionV3."""
    y, x = np.mgrid[:40, :64]
    picture = np.stack([(3 * x + y) % 256, (5 * y + x * x) % 256, (x * y) % 256], -1).astype(np.uint8)
    features = open_network("inception", str(inception_file), Framing("tf1")).images([Image.fromarray(picture)])[0]
    assert features.shape == (2048,)
    recorded = [0.0, 158.97467041015625, 65594.6171875, 7807.61328125, 0.0]
    assert features[[0, 500, 1000, 1500, 2047]] == pytest.approx(recorded, rel=1e-3)
    assert features.mean() == pytest.approx(77664.0859375, rel=1e-4)
    assert features.std(ddof=1) == pytest.approx(238466.484375, rel=1e-4)


@pytest.mark.parametrize(("resize", "crop"), [("clean", ""), ("clean", "smooth"), ("tf1", "plain")])
def test_framing_ends_at_the_size_of_inception(resize: str, crop: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    framed = Framing(resize, crop)(image)
    assert framed.shape == (3, 299, 299)
    assert 0 <= framed.min() < framed.max() <= 255


class TestMistakes:
    def test_a_file_that_is_not_inception(self, tmp_path: Path) -> None:
        torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"is not the Inception of FID: .* it is absent; give pt_inception"):
            Inception.load(tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"evaluate\.weights\.inception: there is no file"):
            find_weights("inception", str(tmp_path / "none.pth"))

    def test_a_folder_of_another_model(self, tiny_dino: Path, tiny_clip: Path) -> None:
        with pytest.raises(CheckpointError, match=r"evaluate\.weights\.clip"):
            open_network("clip", str(tiny_dino))
        with pytest.raises(CheckpointError, match=r"evaluate\.weights\.dino"):
            open_network("dino", str(tiny_clip))

    def test_a_folder_without_weights(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
            weights_sha256(str(tmp_path))

    def test_a_picture_that_is_none(self, tiny_dino: Path, tmp_path: Path) -> None:
        (tmp_path / "no.png").write_bytes(b"no picture")
        with pytest.raises(ImageError):
            extract([tmp_path / "no.png"], {"dino": open_network("dino", str(tiny_dino))})
        with pytest.raises(ConfigError, match="no images"):
            extract([], {})

    def test_an_unknown_network(self) -> None:
        with pytest.raises(ConfigError, match=r"protocol\.features: there is no 'vgg'"):
            open_network("vgg", "x")


def test_digest_is_that_of_the_file_itself(tiny_dino: Path) -> None:
    """So that anyone can check it with sha256sum."""
    expected = hashlib.sha256((tiny_dino / "model.safetensors").read_bytes()).hexdigest()
    assert weights_sha256(str(tiny_dino)) == expected
