"""Answers are those of the weights as they are now, whoever wrote them, in whatever mode, place or precision."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn

from kosmosg import KosmosG, KosmosGProcessor, Prompt
from kosmosg.model.inference import evaluating, weights_version
from kosmosg.prompt_encoder import PromptEncoder

PROMPT = Prompt("<i> in the snow", [Image.new("RGB", (40, 30), "red")])


@pytest.fixture
def model(tiny_model: KosmosG) -> KosmosG:
    return copy.deepcopy(tiny_model).eval()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_writing_into_a_condition_changes_no_other(model: KosmosG, tiny_processor: KosmosGProcessor) -> None:
    batch, encoder = tiny_processor(["a cat", "a dog"]), PromptEncoder(model, tiny_processor)
    for ask in (lambda: model.encode(batch), lambda: encoder(["a cat", "a dog"])):
        expected, spoilt = ask(), ask()
        spoilt.negative[0].zero_()
        spoilt.positive[0].zero_()
        for part in ("positive", "negative"):
            assert distance(getattr(spoilt, part)[1], getattr(expected, part)[1]) == 0
            assert distance(getattr(ask(), part), getattr(expected, part)) == 0


def test_conditions_of_inference_mode_serve_a_later_backward_pass(
    model: KosmosG, tiny_processor: KosmosGProcessor
) -> None:
    encoder = PromptEncoder(model, tiny_processor)
    with torch.inference_mode():
        encoder([PROMPT])
        model.encode(tiny_processor("a cat"))
    scale = torch.ones((), requires_grad=True)
    for condition in (encoder([PROMPT]), model.encode(tiny_processor("a cat"))):
        (condition.positive * scale + condition.negative * scale).sum().backward()
    mixed = encoder([Prompt("<i> <i>", [PROMPT.images[0], Image.new("RGB", (9, 9))])])
    (mixed.positive * scale).sum().backward()


def test_autocast_neither_takes_nor_leaves_conditions(model: KosmosG, tiny_processor: KosmosGProcessor) -> None:
    batch, encoder = tiny_processor(PROMPT), PromptEncoder(model, tiny_processor)

    def ask() -> list[Tensor]:
        first, second = model.encode(batch), encoder([PROMPT])
        return [first.positive, first.negative, second.positive, second.negative]

    plain = ask()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = ask()
    assert all(distance(one.float(), other) > 0 for one, other in zip(rounded, plain, strict=True))
    with torch.autocast("cpu", torch.float16):
        assert all(distance(one.float(), other.float()) > 0 for one, other in zip(ask(), rounded, strict=True))
    assert all(distance(one, other) == 0 for one, other in zip(ask(), plain, strict=True))


def averaged(model: KosmosG) -> None:
    average = EMAModel(model.parameters())
    average.shadow_params = [1.1 * value for value in average.shadow_params]
    average.copy_to(model.parameters())


def nudged(model: KosmosG) -> None:
    model.aligner.encoder.layer_norm.bias.data[0] += 0.01


def flipped(model: KosmosG) -> None:
    model.aligner.encoder.layers[0].encoder_attn.out_proj.weight.data.neg_()


def reseen(model: KosmosG) -> None:
    model.mllm.image_to_text_projection.latent_query.data.mul_(1.5)


@pytest.mark.parametrize("write", [averaged, nudged, flipped, reseen])
def test_writes_through_data_are_noticed(
    model: KosmosG, tiny_processor: KosmosGProcessor, write: Callable[[KosmosG], None]
) -> None:
    encoder = PromptEncoder(model, tiny_processor)
    before, version = encoder([PROMPT]), weights_version(model)
    assert weights_version(model) == version
    write(model)
    assert weights_version(model) != version
    fresh = PromptEncoder(model, tiny_processor)([PROMPT])
    assert distance(fresh.positive, before.positive) > 1e-6
    assert PROMPT not in encoder
    assert distance(encoder([PROMPT]).positive, fresh.positive) == 0
    assert distance(encoder([PROMPT]).negative, fresh.negative) == 0
    assert distance(model.encode(tiny_processor(PROMPT)).negative, fresh.negative) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_single_value_shows_in_the_version(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(7, 3), nn.Linear(200, 301), nn.Embedding(5, 5)).to(dtype)
    for parameter in model.parameters():
        version = weights_version(model)
        parameter.data.view(-1)[-1] += 0.5
        assert weights_version(model) != version


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloaded_models_answer(model: KosmosG, tiny_processor: KosmosGProcessor, place: str, tmp_path: Path) -> None:
    from accelerate import cpu_offload

    batch = tiny_processor([PROMPT, "a cat"])
    expected = model.encode(batch)
    if place == "cpu":
        cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        model.save_pretrained(tmp_path / "model")
        model = KosmosG.from_pretrained(tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "disk")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    for found in (model.encode(batch), PromptEncoder(model, tiny_processor)([PROMPT, "a cat"])):
        assert found.positive.device.type == "cpu"
        torch.testing.assert_close(found.positive, expected.positive, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.negative, expected.negative, atol=1e-5, rtol=1e-5)
    text = model.mllm.generate(**batch, max_new_tokens=3, do_sample=False)
    assert text.shape == (2, batch["input_ids"].shape[1] + 3)


def test_threads_that_ask_while_the_model_trains_meet_no_dropout(
    model: KosmosG, tiny_processor: KosmosGProcessor
) -> None:
    words = ["cat", "dog", "ball", "tree", "fish", "house", "gem", "snow"]
    expected = [PromptEncoder(model, tiny_processor)([f"a {word}"]).positive for word in words]
    model.train()
    encoder = PromptEncoder(model, tiny_processor)
    found: dict[int, Tensor] = {}

    def ask(number: int) -> None:
        for _ in range(5):
            encoder.clear()
            found[number] = encoder([f"a {words[number]}"]).positive
            model.encode(tiny_processor("a cat"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(words))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(module.training for module in model.modules())
    assert max(distance(found[number], value) for number, value in enumerate(expected)) < 1e-5


def test_evaluation_leaves_each_module_in_its_own_mode(model: KosmosG) -> None:
    model.train()
    model.mllm.vision_model.eval()
    before = {name: module.training for name, module in model.named_modules()}
    with evaluating(model), evaluating(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before
