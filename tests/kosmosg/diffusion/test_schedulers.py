"""Schedulers reproduce the recorded trajectories of the release that the published figures used (diffusers 0.21.4), and
a name means the same scheduler whatever stood there before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from kosmosg import ConfigError
from kosmosg.diffusion.schedulers import SCHEDULERS, dpm_solver, make_scheduler

GOLDEN = torch.load(Path(__file__).parents[2] / "golden" / "diffusers_0_21_4_trajectories.pt", weights_only=True)
SD15 = {  # scheduler/scheduler_config.json of Stable Diffusion 1.5
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}


def trajectory(scheduler: Any, record: dict[str, Any], steps: int) -> torch.Tensor:
    """Where the scheduler takes the recorded start under the recording's toy denoiser."""
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == [int(t) for t in record["timesteps"]]
    latents = record["x_init"]
    for t in scheduler.timesteps:
        mixed = torch.einsum("ij,bjhw->bihw", record["W"], latents)
        noise = 0.9 * torch.tanh(mixed + float(t) / 1000) + 0.1 * latents
        latents = scheduler.step(noise, t, latents).prev_sample
    return latents


@pytest.mark.parametrize(
    ("name", "steps", "record"),
    [
        ("dpms", 10, "dpms10"),
        ("dpms", 50, "dpms50"),
        ("dpms", 100, "dpms100"),
        ("ddim", 50, "ddim50"),
        ("ddim", 250, "ddim250"),
        ("pndm", 50, "pndm50"),
    ],
)
@pytest.mark.parametrize("saved", [False, True], ids=["original config", "config saved again"])
def test_published_trajectories(name: str, steps: int, record: str, saved: bool, tmp_path: Path) -> None:
    config: dict[str, Any] = SD15
    if saved:
        # Saving writes every default down, timestep spacing among them; the scheduler must not inherit that.
        PNDMScheduler.from_config(SD15).save_pretrained(tmp_path)
        config = PNDMScheduler.load_config(tmp_path)
    reached = trajectory(make_scheduler(name, config), GOLDEN[record], steps)
    torch.testing.assert_close(reached, GOLDEN[record]["x_final"], atol=2e-4, rtol=1e-5)


def test_the_newer_default_would_be_another_trajectory() -> None:
    newer = DPMSolverMultistepScheduler.from_config(SD15)
    distance = (trajectory(newer, GOLDEN["dpms10"], 10) - GOLDEN["dpms10"]["x_final"]).abs().max()
    assert distance > 0.01


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_betas_and_prediction_type(name: str) -> None:
    scheduler = make_scheduler(name, {**SD15, "prediction_type": "v_prediction"})
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod, GOLDEN["ddpm_alphas_cumprod"], atol=1e-6, rtol=0)
    again = make_scheduler(name, make_scheduler("euler", scheduler.config).config)
    assert again.config.prediction_type == "v_prediction"


# -- a name means one scheduler ----------------------------------------------------------------------------------------

TRAINING = {"beta_start": 0.001, "beta_end": 0.011, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
UNUSUAL = [
    DDIMScheduler(**TRAINING, clip_sample=True, set_alpha_to_one=True, timestep_spacing="trailing", thresholding=True),
    DDPMScheduler(**TRAINING, variance_type="fixed_large", clip_sample_range=2.0, timestep_spacing="trailing"),
    DPMSolverMultistepScheduler(
        **TRAINING, algorithm_type="sde-dpmsolver++", solver_order=3, solver_type="heun", final_sigmas_type="sigma_min",
        use_karras_sigmas=True, euler_at_final=True, lower_order_final=False,
    ),
    EulerDiscreteScheduler(
        **TRAINING, final_sigmas_type="sigma_min", sigma_min=0.1, sigma_max=9.0, steps_offset=3,
        timestep_spacing="leading", timestep_type="continuous", interpolation_type="log_linear",
    ),
    HeunDiscreteScheduler(**TRAINING, clip_sample=True, use_karras_sigmas=True, timestep_spacing="trailing"),
    LMSDiscreteScheduler(**TRAINING, use_karras_sigmas=True, timestep_spacing="leading"),
    PNDMScheduler(**TRAINING, skip_prk_steps=False, set_alpha_to_one=True, timestep_spacing="trailing"),
    UniPCMultistepScheduler(
        **TRAINING, solver_order=1, solver_type="bh1", predict_x0=False, lower_order_final=False, thresholding=True
    ),
]  # fmt: skip


def sampled(scheduler: Any, steps: int = 6) -> torch.Tensor:
    """Where a scheduler of any kind takes a start under a fixed denoiser."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator) / 2
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 3, 3, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, t)
        answer = torch.einsum("ij,bjhw->bihw", mixing, torch.tanh(seen + float(t) / 1000))
        options = {"generator": generator} if "Ancestral" in type(scheduler).__name__ else {}
        latents = scheduler.step(answer, t, latents, **options).prev_sample
    return latents


@pytest.mark.parametrize(
    "before", [*SCHEDULERS, *UNUSUAL], ids=lambda item: item if isinstance(item, str) else type(item).__name__
)
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved"])
def test_a_name_means_the_same_after_every_other_scheduler(name: str, before: Any, saved: bool, tmp_path: Path) -> None:
    if isinstance(before, str):
        before = make_scheduler(before, TRAINING)
    config = before.config
    if saved:  # a file states every default
        before.save_pretrained(tmp_path)
        config = type(before).load_config(tmp_path)
    expected, found = make_scheduler(name, TRAINING), make_scheduler(name, config)
    assert dict(found.config) == dict(expected.config)
    assert torch.equal(sampled(found), sampled(expected))


def test_betas_that_a_config_leaves_out_are_the_same_for_every_name() -> None:
    """diffusers' classes do not agree on them, and training reads the same file with `DDPMScheduler`."""
    for name in SCHEDULERS:
        torch.testing.assert_close(make_scheduler(name, {}).alphas_cumprod, DDPMScheduler().alphas_cumprod)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusers_own_way_to_another_scheduler_still_works(name: str) -> None:
    """`DDIMScheduler.from_config(pipe.scheduler.config)`, as every guide says, clips no latents afterwards."""
    config = DDIMScheduler.from_config(make_scheduler(name, SD15).config).config
    assert (config.clip_sample, config.set_alpha_to_one, config.steps_offset) == (False, False, 1)


def test_dpm_solver_undoes_other_settings() -> None:
    karras = DPMSolverMultistepScheduler.from_config(SD15, use_karras_sigmas=True, solver_order=3)
    torch.testing.assert_close(
        trajectory(dpm_solver(karras.config), GOLDEN["dpms50"], 50), GOLDEN["dpms50"]["x_final"], atol=2e-4, rtol=1e-5
    )


def test_an_unknown_scheduler_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no scheduler 'dpmss'; choose one of dpms, ddim"):
        make_scheduler("dpmss", SD15)
