"""Stage 1 predicts words and nothing else, trains what the paper trains, and learns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kosmosg.data.collate.pretrain import PretrainCollate
from kosmosg.data.templates.pretrain import IGNORED
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor
from kosmosg.stages import Stage
from kosmosg.stages.pretrain import PretrainObjective, PretrainStage

Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def batch(processor: KosmosGProcessor, compositions: list[dict[str, Any]], place: Any) -> Batch:
    collate = PretrainCollate(processor, length=80)
    texts = [{"id": "t", "text": "a cat in the snow.\na dog in the sea."}]
    samples = [(place("interleaved", n), record) for n, record in enumerate(compositions)]
    samples += [(place("caption", 9), compositions[0]), (place("text", 10), texts[0])]
    return collate(samples)


@pytest.fixture(scope="module")
def words(processor: KosmosGProcessor, place: Any) -> Batch:
    return PretrainCollate(processor)([(place("text", 1), {"id": "t", "text": "a cat in the snow."})])


def test_loss_is_the_mean_over_learnt_tokens_of_the_models_own_logits(new_model: Any, batch: Batch) -> None:
    model = new_model()
    stage = PretrainStage(model)
    inputs = {name: batch[name] for name in ("input_ids", "image_embeds_position_mask", "pixel_values")}
    everything = torch.log_softmax(model(**inputs).logits, dim=-1)
    learnt = batch["labels"] != IGNORED
    expected = -everything[learnt].gather(1, batch["labels"][learnt][:, None]).mean()
    output = stage(batch)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    assert output.metrics["tokens"] == learnt.sum() == batch["weight"]


def test_language_model_resampler_and_last_vision_block_move(new_model: Any, batch: Batch, train: Any) -> None:
    stage = PretrainStage(new_model())
    assert isinstance(stage, Stage)
    before = {name: parameter.clone() for name, parameter in stage.named_parameters()}
    train(stage, batch, steps=1, lr=1e-3)
    moved = {name for name, parameter in stage.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, _ in stage.trainable()}
    assert {name for name in moved if ".vision_model." in name} == {
        name
        for name in before
        if ".vision_model.model.encoder.layers.1." in name or ".vision_model.model.post_layernorm." in name
    }
    assert not any(".aligner." in name for name in moved)
    assert any(".image_to_text_projection." in name for name in moved)


def test_it_learns_a_batch(new_model: Any, batch: Batch, train: Any) -> None:
    losses = train(PretrainStage(new_model()), batch, steps=40, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_slices_change_nothing(new_model: Any, batch: Batch, gradients: Callable[..., Batch]) -> None:
    whole = gradients(PretrainStage(new_model()), batch)
    sliced = gradients(PretrainStage(new_model(), PretrainObjective(logit_slices=3)), batch)
    torch.testing.assert_close(sliced, whole, atol=1e-6, rtol=1e-4)


def test_checkpointing_changes_nothing(new_model: Any, batch: Batch, gradients: Callable[..., Batch]) -> None:
    stage = PretrainStage(new_model(dropout=0.1))
    plain = gradients(stage, batch)
    stage.checkpoint_activations()
    torch.testing.assert_close(gradients(stage, batch), plain)


def test_bfloat16_is_close(new_model: Any, batch: Batch) -> None:
    stage = PretrainStage(new_model())
    exact = stage(batch).loss.detach()
    output = stage.bfloat16()(batch)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for _, parameter in stage.trainable() if parameter.grad is not None)
    torch.testing.assert_close(output.loss.detach(), exact, rtol=0.02, atol=0.0)


def test_text_alone_still_runs_the_eyes(new_model: Any, words: Batch, gradients: Callable[..., Batch]) -> None:
    """Under ZeRO every rank must have a gradient for the same parameters, whatever its batch holds."""
    stage = PretrainStage(new_model())
    found = gradients(stage, words)
    assert found.keys() == {"loss", *(name for name, _ in stage.trainable())}
    eyes = [gradient for name, gradient in found.items() if "vision_model" in name or "image_to_text" in name]
    assert all((gradient == 0).all() for gradient in eyes)
    with torch.no_grad():
        torch.testing.assert_close(stage(words).loss, found["loss"])


def test_modules_run_in_one_order_with_and_without_images(new_model: Any, batch: Batch, words: Batch) -> None:
    stage = PretrainStage(new_model())
    order: list[str] = []
    for name, module in stage.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
            module.register_full_backward_hook(lambda *_, name=name: order.append(f"{name}, backward"))
    seen = []
    for one in (batch, words, words | {"pixel_values": batch["pixel_values"][:0]}):
        stage(one).loss.backward()
        with torch.no_grad():
            stage.eval()(one)
        stage.train()
        seen.append(order.copy())
        order.clear()
    assert any(name.endswith("fc1, backward") for name in seen[0])
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_nothing_of_the_blank_image_reaches_the_loss(new_model: Any, words: Batch, broken: float) -> None:
    stage = PretrainStage(new_model()).eval()
    sound = stage(words).loss
    with torch.no_grad():
        stage.model.mllm.image_to_text_projection.dense.bias.fill_(broken)
    assert torch.equal(stage(words).loss, sound)


def test_a_batch_without_anything_to_learn_gives_zero(new_model: Any, words: Batch) -> None:
    stage = PretrainStage(new_model())
    output = stage(words | {"labels": torch.full_like(words["labels"], IGNORED)})
    output.loss.backward()
    assert output.loss == 0


def test_slices_must_exist() -> None:
    with pytest.raises(ConfigError, match="logit_slices is 0"):
        PretrainObjective(logit_slices=0)
