"""Samplers by name, made from a decoder's own noise schedule: those of the published runs and the modern ones.

diffusers changed the last step of DPM-Solver in 0.22: it now goes to sigma 0, where the published Kosmos-G figures
(0.21.4) stopped at the schedule's smallest sigma. `dpm_solver` is the published one to 3e-5; the newer default is about
0.09 away on a recorded trajectory. DDIM and PNDM are the same in both.
"""

from collections.abc import Callable, Mapping
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


def dpm_solver(scheduler_config: Mapping[str, Any]) -> DPMSolverMultistepScheduler:
    """DPM-Solver++ 2M midpoint as the published runs used it (`dpms` in the original app).

    Takes any scheduler's config; betas and prediction type stay, every setting that shapes the trajectory is fixed.
    """
    return DPMSolverMultistepScheduler.from_config(
        scheduler_config,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        use_karras_sigmas=False,
        timestep_spacing="linspace",
        final_sigmas_type="sigma_min",
    )


SCHEDULERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    # The original app and evaluations:
    "dpms": dpm_solver,
    "ddim": lambda config: DDIMScheduler.from_config(
        config, clip_sample=False, timestep_spacing="leading", steps_offset=1
    ),
    "pndm": lambda config: PNDMScheduler.from_config(
        config, skip_prk_steps=True, timestep_spacing="leading", steps_offset=1
    ),
    # Since then:
    "dpm++": lambda config: DPMSolverMultistepScheduler.from_config(config, final_sigmas_type="zero"),
    "dpm++-karras": lambda config: DPMSolverMultistepScheduler.from_config(config, use_karras_sigmas=True),
    "euler": lambda config: EulerDiscreteScheduler.from_config(config),
    "euler-a": lambda config: EulerAncestralDiscreteScheduler.from_config(config),
    "heun": lambda config: HeunDiscreteScheduler.from_config(config),
    "unipc": lambda config: UniPCMultistepScheduler.from_config(config),
}
"""Name of a sampler -> how to make it from any scheduler's config (`pipe.scheduler.config`)."""


def make_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> Any:
    """A fresh scheduler: `pipe.scheduler = make_scheduler("euler", pipe.scheduler.config)`."""
    if name not in SCHEDULERS:
        raise ConfigError(f"there is no scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](scheduler_config)
