"""Stage 3 teaches the model through the frozen U-Net; its randomness belongs to the samples, not to the workers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from kosmosg.data.collate.instruct import InstructCollate
from kosmosg.diffusion.decoder import FrozenDecoder
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor
from kosmosg.stages import Stage
from kosmosg.stages.instruct import InstructObjective, InstructStage

Batch = dict[str, torch.Tensor]
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def batch(processor: KosmosGProcessor, compositions: Records, place: Any) -> Batch:
    collate = InstructCollate(processor, image_size=16)
    samples = [(place("composition", seed), record) for seed, record in enumerate(compositions)]
    return collate([*samples, (place("t2i", 7), compositions[1])])


@pytest.fixture
def new_stage(new_model: Any, decoder: FrozenDecoder, processor: KosmosGProcessor) -> Callable[..., InstructStage]:
    def build(objective: InstructObjective | None = None, **options: Any) -> InstructStage:
        return InstructStage(new_model(**options), decoder, processor.null()["input_ids"], objective)

    return build


def part(batch: Batch, rows: list[int], slots_per_image: int) -> Batch:
    """Some rows of a batch, with their images."""
    images = (batch["image_embeds_position_mask"].sum(dim=1) // slots_per_image).tolist()
    starts = [sum(images[:row]) for row in range(len(images))]
    kept = [start for row in rows for start in range(starts[row], starts[row] + images[row])]
    cut = {name: batch[name][rows] for name in ("input_ids", "image_embeds_position_mask", "target_pixels", "seed")}
    return cut | ({"pixel_values": batch["pixel_values"][kept]} if kept else {})


def test_loss_is_the_error_of_the_unet_under_the_models_condition(new_stage: Any, batch: Batch) -> None:
    stage = new_stage(InstructObjective(null_drop=0.5))
    random = stage.noise(batch["seed"])
    assert random.dropped.any()
    assert not random.dropped.all()
    model = stage.model.eval()
    condition = model.encode(batch)
    assert not torch.allclose(condition.positive, condition.negative)
    heard = torch.where(random.dropped[:, None, None], condition.negative, condition.positive)
    latents = stage.decoder.latents(batch["target_pixels"], random.sample)
    signal = stage.decoder.alphas_cumprod[random.timesteps].sqrt()[:, None, None, None]
    spread = (1 - stage.decoder.alphas_cumprod[random.timesteps]).sqrt()[:, None, None, None]
    answer = stage.decoder.unet(signal * latents + spread * random.noise, random.timesteps, heard).sample
    expected = ((answer - random.noise) ** 2).mean()
    stage.train()
    output = stage(batch)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    assert list(output.metrics) == ["loss", "dropped"]  # the error without weights would be the loss once more


def test_everything_but_the_first_vision_blocks_and_the_decoder_moves(new_stage: Any, batch: Batch, train: Any) -> None:
    stage = new_stage(InstructObjective(null_drop=0.5))
    assert isinstance(stage, Stage)
    before = {name: parameter.clone() for name, parameter in stage.named_parameters()}
    train(stage, batch, steps=1, lr=1e-3)
    moved = {name for name, parameter in stage.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, _ in stage.trainable()}
    still = {name for name in before if name not in moved}
    assert {name for name in still if not name.startswith("decoder.")} == {
        name
        for name in before
        if ".vision_model." in name and ".encoder.layers.1." not in name and ".post_layernorm." not in name
    }
    assert stage.export() is stage.model


def test_the_null_condition_is_trained(new_stage: Any, batch: Batch, gradients: Any) -> None:
    stage = new_stage(InstructObjective(null_drop=1.0))
    found = gradients(stage, batch)
    # With every sample dropped, only `<s>` was read: its embedding moves, as do the aligner's queries.
    embedding = next(
        gradient for name, gradient in found.items() if name.endswith("embed_tokens.weight") and "text" in name
    )
    assert embedding[0].norm() > 0
    assert embedding[3:].norm() == 0
    assert found["model.aligner.encoder_query.weight"].norm() > 0


def test_it_learns_a_batch(new_stage: Any, batch: Batch, train: Any) -> None:
    # A decoder of random weights cannot be taught to denoise; that its answer comes nearer shows that gradients arrive.
    losses = train(new_stage(), batch, steps=40, lr=3e-3)
    assert losses[-1] < 0.97 * losses[0]
    assert min(losses) == pytest.approx(losses[-1], rel=0.02)


def test_noise_belongs_to_the_sample(new_stage: Any, batch: Batch) -> None:
    stage = new_stage()
    together = stage.noise(batch["seed"])
    for row in range(len(batch["seed"])):
        alone = stage.noise(batch["seed"][row : row + 1])
        for name in ("sample", "noise", "timesteps", "dropped"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])
    assert not torch.equal(together.sample, together.noise)


def test_training_does_not_depend_on_the_number_of_workers(
    new_stage: Any, batch: Batch, processor: KosmosGProcessor, gradients: Any
) -> None:
    """The mean of two workers' gradients is the gradient of one worker with both their samples."""
    stage = new_stage(InstructObjective(null_drop=0.4), dropout=0.1)
    slots = processor.num_image_tokens
    step = {"step_seed": torch.tensor(3)}
    whole = gradients(stage, part(batch, [0, 1, 2, 4], slots) | step)
    halves = [gradients(stage, part(batch, rows, slots) | step) for rows in ([0, 1], [2, 4])]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in whole}
    torch.testing.assert_close(mean, whole, atol=1e-5, rtol=1e-3)


def test_timesteps_are_uniform_or_informative(new_stage: Any) -> None:
    seeds = torch.arange(2000)
    uniform = new_stage().noise(seeds).timesteps.double()
    assert uniform.mean() == pytest.approx(499.5, abs=20)
    assert (uniform.min(), uniform.max()) == (pytest.approx(0, abs=5), pytest.approx(999, abs=5))
    objective = InstructObjective(timesteps="informative", uniform_share=0.0, centre=0.3, spread=0.1)
    informative = new_stage(objective).noise(seeds).timesteps.double()
    assert informative.mean() == pytest.approx(300, abs=10)
    assert informative.std() == pytest.approx(100, abs=10)
    assert informative.min() >= 0
    # The other numbers of a sample stay the same, so the two can be compared sample by sample.
    assert torch.equal(new_stage().noise(seeds[:9]).noise, new_stage(objective).noise(seeds[:9]).noise)


def test_a_tenth_of_the_samples_drops(new_stage: Any) -> None:
    dropped = new_stage().noise(torch.arange(2000)).dropped
    assert 140 < int(dropped.sum()) < 260


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_make_epsilon_errors_count_like_velocity_errors(prediction: str, new_stage: Any, batch: Batch) -> None:
    stage = new_stage(InstructObjective(timesteps="informative", weight_limit=6.0))
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    stage.decoder = FrozenDecoder(stage.decoder.unet, stage.decoder.vae, dict(schedule.config))
    timesteps = torch.tensor([0, 400, 999])
    weights = stage.weights(timesteps)
    if prediction == "v_prediction":
        assert torch.equal(weights, torch.ones(3))
    else:
        kept = schedule.alphas_cumprod[timesteps]
        torch.testing.assert_close(weights[:2], 1 / kept[:2])
        assert weights[2] == 6.0
        output = stage(batch)
        assert output.loss > output.metrics["mse"]


def test_checkpointing_changes_nothing(new_stage: Any, batch: Batch, gradients: Any) -> None:
    stage, batch = new_stage(dropout=0.1), batch | {"step_seed": torch.tensor(3)}
    plain = gradients(stage, batch)
    stage.checkpoint_activations()
    torch.testing.assert_close(gradients(stage, batch), plain)


def test_bfloat16_is_close(new_stage: Any, batch: Batch) -> None:
    stage = new_stage()
    exact = stage(batch).loss.detach()
    output = stage.bfloat16()(batch)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for _, parameter in stage.trainable() if parameter.grad is not None)
    torch.testing.assert_close(output.loss.detach(), exact, rtol=0.02, atol=0.0)
    # In bf16 the share of signal that is left after little noise would round to 1, and the noise would be gone.
    early = torch.zeros(1, dtype=torch.long)
    still = stage.decoder.noisy(
        torch.zeros(1, *stage.decoder.latent_shape), torch.ones(1, *stage.decoder.latent_shape), early
    )
    torch.testing.assert_close(still.mean(), torch.tensor(0.00085**0.5), rtol=0.01, atol=0.0)


def test_text_alone_still_runs_the_eyes(new_stage: Any, batch: Batch, processor: Any, gradients: Any) -> None:
    stage = new_stage()
    found = gradients(stage, part(batch, [4], processor.num_image_tokens))
    assert found.keys() == {"loss", *(name for name, _ in stage.trainable())}


def test_the_decoder_stays_in_eval_mode(new_stage: Any) -> None:
    stage = new_stage(dropout=0.1)
    assert stage.model.training
    assert not stage.decoder.training
    assert not stage.decoder.unet.training


def test_bad_objectives_are_named() -> None:
    with pytest.raises(ConfigError, match="null_drop is 2"):
        InstructObjective(null_drop=2)
    with pytest.raises(ConfigError, match="'uniform' or 'informative'"):
        InstructObjective(timesteps="mostly")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="spread is 0"):
        InstructObjective(spread=0)
