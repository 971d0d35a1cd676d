"""The step engine generates what diffusers generates, whatever else is in the batch."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from kosmosg.diffusion.schedulers import SCHEDULERS, make_scheduler
from serving.engine.messages import DenoisingProgress, Event, Finished, ImageRequest, Preview
from serving.engine.step_engine import ActiveRequest, StepEngine

QUERIES, WIDTH = 4, 16


@pytest.fixture(scope="module")
def parts() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """A U-Net and a VAE of a few thousand weights: 8x8 latents, 32x32 pixels."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    return unet, vae


@pytest.fixture(scope="module")
def fresh_images(parts) -> dict[str, np.ndarray]:
    """One image by each scheduler, each from an engine of its own."""
    return {name: generated_alone(engine(parts), request((5,), scheduler=name)) for name in SCHEDULERS}


def schedule(prediction_type: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion 1.5's betas."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        prediction_type=prediction_type,
    )


def engine(parts: tuple[UNet2DConditionModel, AutoencoderKL], max_batch_rows: int = 8) -> StepEngine:
    return StepEngine(*parts, scheduler=schedule(), max_batch_rows=max_batch_rows)


def request(seeds: tuple[int, ...] = (5,), **changes: object) -> ImageRequest:
    generator = torch.Generator().manual_seed(sum(seeds))
    conditions = torch.randn(2, QUERIES, WIDTH, generator=generator)
    settings = {"height": 32, "width": 32, "steps": 5} | changes
    return ImageRequest(conditions[0].numpy(), conditions[1].numpy(), seeds, **settings)  # type: ignore[arg-type]


def run(engine: StepEngine) -> list[tuple[ActiveRequest, Event]]:
    events = []
    while engine.active:
        events += engine.tick()
    return events


def images_of(events: list[tuple[ActiveRequest, Event]], active: ActiveRequest) -> np.ndarray:
    (finished,) = [event for who, event in events if who is active and isinstance(event, Finished)]
    return finished.images.astype(int)


def generated_alone(engine: StepEngine, asked: ImageRequest) -> np.ndarray:
    active = engine.admit(asked)
    return images_of(run(engine), active)


def generated_by_diffusers(parts, asked: ImageRequest, scheduler: object) -> np.ndarray:
    stock = StableDiffusionPipeline(
        vae=parts[1],
        unet=parts[0],
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    images = stock(
        prompt_embeds=torch.tensor(asked.positive)[None],
        negative_prompt_embeds=torch.tensor(asked.negative)[None],
        num_images_per_prompt=len(asked.seeds),
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in asked.seeds],
        height=asked.height,
        width=asked.width,
        output_type="np",
    ).images
    return np.round(images * 255)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_images_are_those_of_stock_diffusers(parts, scheduler: str, guidance: float) -> None:
    asked = request((5, 6), guidance=guidance, scheduler=scheduler)
    mine = engine(parts)
    generated = generated_alone(mine, asked)
    assert generated.shape == (2, 32, 32, 3)
    assert generated.std() > 5, "a flat image would equal any other"
    expected = generated_by_diffusers(parts, asked, make_scheduler(scheduler, schedule().config))
    assert np.abs(generated - expected).max() <= 1


def test_without_a_name_the_decoders_own_scheduler_is_used(parts) -> None:
    own = DPMSolverMultistepScheduler.from_config(schedule("v_prediction").config, final_sigmas_type="zero")
    mine = StepEngine(*parts, scheduler=own, max_batch_rows=8)
    asked = request((5,))
    generated = generated_alone(mine, asked)
    assert np.abs(generated - generated_by_diffusers(parts, asked, own)).max() <= 1
    published = generated_alone(mine, request((5,), scheduler="dpms"))
    assert np.abs(generated - published).max() > 1, "the published scheduler ends elsewhere"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_schedulers_name_means_the_same_in_every_decoder(parts, scheduler: str) -> None:
    asked = request((5,), scheduler=scheduler)
    expected = generated_alone(engine(parts), asked)
    for own in SCHEDULERS:
        decoder = StepEngine(*parts, scheduler=make_scheduler(own, schedule().config), max_batch_rows=8)
        assert np.array_equal(generated_alone(decoder, asked), expected), f"{scheduler} in a decoder saved with {own}"


@pytest.mark.parametrize("first", SCHEDULERS)
def test_a_scheduler_leaves_nothing_behind_for_the_next(parts, fresh_images, first: str) -> None:
    """In one engine, each scheduler after `first` and interleaved with all others: the images of a fresh engine."""
    used = engine(parts, max_batch_rows=6)
    before = used.admit(request((5,), scheduler=first))
    events = used.tick() + used.tick()
    others = {name: used.admit(request((5,), scheduler=name)) for name in SCHEDULERS}
    events += run(used)
    assert np.abs(images_of(events, before) - fresh_images[first]).max() <= 1
    for name, active in others.items():
        assert np.abs(images_of(events, active) - fresh_images[name]).max() <= 1, f"{name} beside and after {first}"


def test_company_does_not_change_an_image(parts) -> None:
    """Others join at other steps, with other schedulers, guidance and sizes, and leave half-way."""
    asked = request((11,))
    expected = generated_alone(engine(parts), asked)

    busy = engine(parts)
    first = busy.admit(request((1, 2), scheduler="ddim", steps=7))
    events = busy.tick() + busy.tick()
    mine = busy.admit(asked)
    events += busy.tick()
    busy.admit(request((3,), guidance=1.0, scheduler="pndm"))
    busy.admit(request((4,), width=48))
    busy.leave(first)
    events += run(busy)
    assert np.abs(images_of(events, mine) - expected).max() <= 1


def test_requests_at_different_steps_share_one_call(parts) -> None:
    calls: list[list[int]] = []
    unet = parts[0]
    hook = unet.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[1].tolist()))
    try:
        shared = engine(parts)
        shared.admit(request((1,), guidance=1.0))
        shared.tick()
        shared.admit(request((2,)))
        shared.tick()
    finally:
        hook.remove()
    assert len(calls) == 2
    early, late = calls[1][0], calls[1][1:]
    assert len(set(late)) == 1
    assert len(late) == 2, "negative and positive row of the second request"
    assert early < late[0], "the first request is one step further down the noise"


def test_a_full_batch_makes_the_last_wait_and_none_starve(parts) -> None:
    small = engine(parts, max_batch_rows=4)
    requests = [small.admit(request((seed,))) for seed in range(3)]
    moved = {id(active) for active, _ in small.tick()}
    assert moved == {id(requests[0]), id(requests[1])}
    assert {id(who) for who, event in run(small) if isinstance(event, Finished)} == {id(r) for r in requests}


def test_a_request_larger_than_the_batch_still_runs(parts) -> None:
    small = engine(parts, max_batch_rows=2)
    active = small.admit(request((1, 2, 3)))
    assert len(images_of(run(small), active)) == 3


def test_leaving_frees_the_place_at_the_next_tick(parts) -> None:
    small = engine(parts, max_batch_rows=2)
    first, second = small.admit(request((1,))), small.admit(request((2,)))
    assert {id(who) for who, _ in small.tick()} == {id(first)}
    small.leave(first)
    assert {id(who) for who, _ in small.tick()} == {id(second)}
    assert small.active == 1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", ["dpms", "ddim", "euler"])
def test_previews_come_evenly_and_approach_the_image(parts, kind: str, scheduler: str) -> None:
    previewing = StepEngine(*parts, scheduler=schedule(kind), max_batch_rows=8)
    active = previewing.admit(request((7,), steps=10, previews=4, scheduler=scheduler, guidance=1.0))
    events = [event for _, event in run(previewing)]
    previews = [event for event in events if isinstance(event, Preview)]
    assert [preview.step for preview in previews] == [2, 4, 6, 8]
    assert [event.step for event in events if isinstance(event, DenoisingProgress)] == list(range(1, 11))
    final = events[-1]
    assert isinstance(final, Finished)
    assert final.evaluations == active.rows * 10
    distances = [np.abs(p.images.astype(int) - final.images.astype(int)).mean() for p in previews]
    assert distances[-1] < distances[0]
