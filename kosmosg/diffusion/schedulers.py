"""Schedulers by name, built from a decoder's own noise schedule: those of the published runs and newer ones.

A scheduler by name depends only on what the U-Net was trained with. diffusers' `from_config` would also pass on every
setting of the previous scheduler, so that Euler after DPM-Solver would stop at another sigma.

diffusers changed the last step of DPM-Solver in 0.22: it now goes to sigma 0, while the published Kosmos-G results
(0.21.4) stopped at the schedule's smallest sigma. `dpm_solver` matches the published one to 3e-5; the newer default is
about 0.09 away on a recorded trajectory. DDIM and PNDM are the same in both.
"""

from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from kosmosg.errors import ConfigError

TRAINED: Mapping[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}
"""What a U-Net was trained with: the only settings that a scheduler by name takes from another scheduler's config.

The values are the defaults if a config lacks the setting (those of `DDPMScheduler`; Heun has different ones).
"""

FAMILY: Mapping[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True}
"""What every scheduler of a Stable Diffusion 1.x pipeline has in common, whichever class it is."""

SCHEDULERS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    # The original app and evaluations:
    "dpms": (
        DPMSolverMultistepScheduler,
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "use_karras_sigmas": False,
            "timestep_spacing": "linspace",
            "final_sigmas_type": "sigma_min",
        },
    ),
    "ddim": (DDIMScheduler, {"timestep_spacing": "leading"}),
    "pndm": (PNDMScheduler, {"timestep_spacing": "leading"}),
    # Since then:
    "dpm++": (DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}),
    "dpm++-karras": (DPMSolverMultistepScheduler, {"final_sigmas_type": "zero", "use_karras_sigmas": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler-a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}
"""Name of a scheduler -> its class and settings."""


def make_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> Any:
    """Create a scheduler: `pipe.scheduler = make_scheduler("euler", pipe.scheduler.config)`.

    Args:
        name: a key of `SCHEDULERS`.
        scheduler_config: the config of any scheduler of the same decoder. Betas, number of timesteps and prediction
            type are taken from it; the result is the same whichever scheduler it belongs to.

    Raises:
        ConfigError: there is no scheduler of that name.
    """
    if name not in SCHEDULERS:
        raise ConfigError(f"there is no scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    kind, settings = SCHEDULERS[name]
    trained = {setting: scheduler_config.get(setting, default) for setting, default in TRAINED.items()}
    return kind.from_config({**trained, **FAMILY, **settings})


def dpm_solver(scheduler_config: Mapping[str, Any]) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M midpoint as the published runs used it: the scheduler `dpms`."""
    solver: DPMSolverMultistepScheduler = make_scheduler("dpms", scheduler_config)
    return solver
