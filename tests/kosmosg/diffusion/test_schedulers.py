"""Samplers reproduce the recorded trajectories of the release that the published figures used (diffusers 0.21.4)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler

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
        # Saving writes every default down, timestep spacing among them; the sampler must not inherit that.
        PNDMScheduler.from_config(SD15).save_pretrained(tmp_path)
        config = PNDMScheduler.load_config(tmp_path)
    reached = trajectory(make_scheduler(name, config), GOLDEN[record], steps)
    torch.testing.assert_close(reached, GOLDEN[record]["x_final"], atol=2e-4, rtol=1e-5)


def test_the_newer_default_would_be_another_trajectory() -> None:
    newer = DPMSolverMultistepScheduler.from_config(SD15)
    distance = (trajectory(newer, GOLDEN["dpms10"], 10) - GOLDEN["dpms10"]["x_final"]).abs().max()
    assert distance > 0.01


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_keeps_betas_and_prediction_type(name: str) -> None:
    scheduler = make_scheduler(name, {**SD15, "prediction_type": "v_prediction"})
    assert scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(scheduler.alphas_cumprod, GOLDEN["ddpm_alphas_cumprod"], atol=1e-6, rtol=0)
    again = make_scheduler(name, make_scheduler("euler", scheduler.config).config)
    assert again.config.prediction_type == "v_prediction"


def test_dpm_solver_undoes_other_settings() -> None:
    karras = DPMSolverMultistepScheduler.from_config(SD15, use_karras_sigmas=True, solver_order=3)
    torch.testing.assert_close(
        trajectory(dpm_solver(karras.config), GOLDEN["dpms50"], 50), GOLDEN["dpms50"]["x_final"], atol=2e-4, rtol=1e-5
    )


def test_an_unknown_sampler_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no scheduler 'dpmss'; choose one of dpms, ddim"):
        make_scheduler("dpmss", SD15)
