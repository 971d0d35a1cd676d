"""The filters with a model, on tiny random models that are saved and loaded by the real code. What random weights say
is nonsense; that thresholds, batches and mistakes are handled is what is tested."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit import ViTImageProcessorPil

from kosmosg.data.annotators.apply import apply
from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.filters.aesthetic import AestheticFilter, AestheticSettings, linear_head
from kosmosg.data.filters.base import FILTERS, BatchFilter
from kosmosg.data.filters.classifier import ClassifierFilter, ClassifierSettings
from kosmosg.data.filters.clip_score import ClipScoreFilter, ClipScoreSettings
from kosmosg.data.image_bytes import encode_image
from kosmosg.errors import ConfigError, DataError
from kosmosg.plugins import load_entry

WIDTH = 16
CAPTIONS = ["a cat and a dog", "a dog", "the garden " * 60, "a cat in the garden", ""]


def samples(count: int = 5) -> list[Sample]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        pixels = rng.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)
        made.append(Sample(f"p{index}", "test", encode_image(Image.fromarray(pixels)), caption=CAPTIONS[index]))
    return made


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    words.train_from_iterator(CAPTIONS, trainer)
    words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2}  # fmt: skip
    config = CLIPConfig(
        text_config=size | text, vision_config=size | {"image_size": 32, "patch_size": 8}, projection_dim=WIDTH
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_head(path: Path, widths: list[int], seed: int = 0) -> Path:
    """A chain of linear layers, named as in a `torch.nn.Sequential` with dropout between."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, (before, after) in enumerate(pairwise(widths)):
        tensors[f"layers.{2 * number}.weight"] = torch.randn(after, before, generator=generator)
        tensors[f"layers.{2 * number}.bias"] = torch.randn(after, generator=generator)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_head(tmp_path_factory.mktemp("head") / "model.safetensors", [WIDTH, 12, 8, 6, 5, 4, 3, 1])


def vit(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        **options,
    )  # fmt: skip
    network = ViTForImageClassification(config)
    with torch.no_grad():
        network.classifier.weight.mul_(20)
    network.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


LABELS = {"id2label": {0: "normal", 1: "NSFW content"}, "label2id": {"normal": 0, "NSFW content": 1}}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vit(tmp_path_factory.mktemp("vit"), **LABELS)


@pytest.fixture(params=["clip_score", "aesthetic", "classifier"])
def filter_and_scores(request: pytest.FixtureRequest, clip: Path, head: Path, classifier: Path) -> Any:
    """A filter of each kind by threshold, whether low or high scores are turned down, and the reason."""
    makers = {
        "clip_score": (lambda at: ClipScoreFilter(str(clip), "cpu", min_similarity=at), False, "low-similarity"),
        "aesthetic": (
            lambda at: AestheticFilter(str(clip), "cpu", head=str(head), min_score=at), False, "low-aesthetic",
        ),
        "classifier": (
            lambda at: ClassifierFilter(str(classifier), "cpu", label="nsfw content", threshold=at),
            True, "nsfw-content",
        ),
    }  # fmt: skip
    return makers[request.param]


def test_a_sample_gets_the_same_score_in_any_batch(filter_and_scores: Any) -> None:
    judge = filter_and_scores[0](0.0)
    together = judge.scores(samples())
    assert len(set(together)) == 5  # they do look at the image
    for start in range(5):
        alone = judge.scores(samples()[start : start + 1])
        assert alone == pytest.approx(together[start : start + 1], rel=1e-4, abs=1e-4)


def test_the_threshold_decides(filter_and_scores: Any) -> None:
    make, high_is_bad, reason = filter_and_scores
    scores = make(0.0).scores(samples())
    threshold = sorted(scores)[2]
    answers = make(threshold - 1e-6)(samples())
    for score, answer in zip(scores, answers, strict=True):
        assert (answer is None) == ((score < threshold) if high_is_bad else (score >= threshold))
        if answer is not None:
            assert isinstance(answer, Rejection)
            assert answer.reason == reason
            told = [float(number) for number in re.findall(r"-?\d+\.\d+", answer.message)]
            assert min(abs(number - score) for number in told) <= 0.0051


def test_a_damaged_image_costs_one_sample(filter_and_scores: Any) -> None:
    given = samples()
    given[1].encoded = b"<html>"
    judge = filter_and_scores[0](0.0)
    answers = apply(judge, given, 5)
    assert answers[1].reason == "unreadable"
    assert all(answer is None or answer.reason != "unreadable" for row, answer in enumerate(answers) if row != 1)


def test_the_image_and_the_caption_count_each(clip: Path) -> None:
    judge = ClipScoreFilter(str(clip), "cpu")
    one, other = samples(2)
    scores = judge.scores([one, other])
    one.caption, other.caption = other.caption, one.caption
    assert set(judge.scores([one, other])).isdisjoint(scores)
    assert all(-1 <= score <= 1 for score in scores)


def test_the_aesthetic_score_is_the_head_on_the_unit_vector(clip: Path, head: Path) -> None:
    judge = AestheticFilter(str(clip), "cpu", head=str(head))
    states = judge.embedder.images([sample.image for sample in samples()])
    assert torch.allclose(states.norm(dim=-1), torch.ones(5))
    torch.manual_seed(0)
    widths = [WIDTH, 12, 8, 6, 5, 4, 3, 1]
    layers = [torch.nn.Linear(before, after) for before, after in pairwise(widths)]
    for layer, (weight, bias) in zip(layers, linear_head(str(head), WIDTH), strict=True):
        layer.weight.data, layer.bias.data = weight, bias
    with torch.no_grad():
        expected = torch.nn.Sequential(*layers)(states)[:, 0].tolist()
    assert judge.scores(samples()) == pytest.approx(expected, rel=1e-4)
    assert AestheticFilter(str(clip), "cpu", head=str(head.parent)).scores(samples()) == judge.scores(samples())
    assert judge.name == f"{clip} + {head}"


def test_one_linear_layer_is_a_head(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, tmp_path / "one.safetensors")
    ((weight, bias),) = linear_head(str(tmp_path / "one.safetensors"), 8)
    assert (weight.shape, bias.shape) == ((1, 8), (1,))


@pytest.mark.parametrize(
    ("widths", "told"),
    [([WIDTH + 1, 4, 1], "gets 16 numbers"), ([WIDTH, 4, 2], "ends in 2 numbers"), ([], "no numbers")],
)
def test_a_head_that_does_not_fit_is_told(tmp_path: Path, widths: list[int], told: str) -> None:
    with pytest.raises(DataError, match=told):
        linear_head(str(save_head(tmp_path / "head.safetensors", widths)), WIDTH)


def test_a_head_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "head.safetensors").write_bytes(b"not a head")
    with pytest.raises(DataError, match="is no safetensors file"):
        linear_head(str(tmp_path / "head.safetensors"), WIDTH)
    with pytest.raises(DataError, match=r"neither a \.safetensors file, nor a folder"):
        linear_head(str(tmp_path), WIDTH)


def test_labels_that_do_not_exclude_each_other_have_their_own_probability(tmp_path: Path) -> None:
    several = vit(tmp_path, problem_type="multi_label_classification", **LABELS)
    one = ClassifierFilter(str(several), "cpu", label="normal").scores(samples())
    other = ClassifierFilter(str(several), "cpu", label="NSFW content").scores(samples())
    assert all(abs(a + b - 1) > 1e-3 for a, b in zip(one, other, strict=True))


def test_labels_that_exclude_each_other_share_it(classifier: Path) -> None:
    one = ClassifierFilter(str(classifier), "cpu", label="normal").scores(samples())
    other = ClassifierFilter(str(classifier), "cpu", label="NSFW content").scores(samples())
    assert [a + b for a, b in zip(one, other, strict=True)] == pytest.approx([1.0] * 5)


def test_an_unknown_label_is_told_with_the_known_ones(classifier: Path) -> None:
    with pytest.raises(DataError, match="'watermark'; it knows normal, nsfw content"):
        ClassifierFilter(str(classifier), "cpu", label="watermark")


def test_a_model_of_another_kind_is_never_started_with_random_weights(tmp_path: Path, classifier: Path) -> None:
    """transformers would only warn."""
    config = ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "headless")
    ViTImageProcessorPil().save_pretrained(tmp_path / "headless")
    with pytest.raises(DataError, match=r"no weights for classifier"):
        ClassifierFilter(str(tmp_path / "headless"), "cpu", label="LABEL_0")
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32
        )
    ).save_pretrained(tmp_path / "half")
    for folder in (tmp_path / "half", classifier):
        with pytest.raises(DataError):
            ClipScoreFilter(str(folder), "cpu")


def test_a_missing_model_is_told_in_a_sentence(tmp_path: Path) -> None:
    for make in (
        lambda: ClipScoreFilter(str(tmp_path), "cpu"),
        lambda: AestheticFilter(str(tmp_path), "cpu", head="x"),
        lambda: ClassifierFilter(str(tmp_path), "cpu", label="x"),
    ):
        with pytest.raises(DataError, match="neither a local model folder nor available on the Hub"):
            make()


@pytest.mark.parametrize("use", ["clip_score", "aesthetic", "classifier"])
def test_the_registry_gives_batch_filters_whose_settings_are_their_arguments(use: str) -> None:
    import dataclasses
    import inspect

    kind: type[BatchFilter] = load_entry(FILTERS, use, "test")
    fields = {field.name: field.default for field in dataclasses.fields(kind.settings)}
    arguments = dict(inspect.signature(kind).parameters)
    assert next(iter(fields)) == "model"
    assert set(fields) == set(arguments)
    assert isinstance(kind.needs, tuple)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClipScoreSettings(min_similarity=2),
        lambda: ClassifierSettings(model="x"),
        lambda: ClassifierSettings(model="x", label="nsfw", threshold=1.5),
    ],
)
def test_settings_without_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_the_defaults_name_models_that_belong_together() -> None:
    settings = AestheticSettings()
    assert "large-patch14" in settings.model
    assert "l14" in settings.head
