"""Estimate the memory per GPU, FLOPs, days and storage of each training stage of a preset before running it.

Nothing is trained or loaded: weights and FLOPs are counted from the shapes. For every device that cannot run the
preset, the reason and a remedy are printed. Exit code 1 if a stage fits on none of the devices.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from jobs.experiment import Experiment, load
from jobs.settings import JOBS, reads, usage
from kosmosg import KosmosGConfig, KosmosGProcessor
from kosmosg.checkpoint.export import read_config
from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.hub import resolve_model
from kosmosg.plugins import load_plugins
from kosmosg.shapes import MODEL_SHAPES, new_config
from kosmosg_platform.console import echo, echo_error
from kosmosg_platform.planning.flops import decoder_cost, stage_cost
from kosmosg_platform.planning.plan import StagePlan, plan_stage, render
from kosmosg_platform.run_paths import STAGES
from kosmosg_platform.training.initial_model import tokenizer_path


def plan(arguments: Sequence[str]) -> list[StagePlan]:
    """The plans of the three stages, each with the settings of its own job. Raises ConfigError."""
    experiments = {stage: _experiment(stage, arguments) for stage in STAGES}
    return [_plan(stage, experiment) for stage, experiment in experiments.items()]


def _experiment(stage: str, arguments: Sequence[str]) -> Experiment:
    presets = [word for word in arguments if "=" not in word]
    if len(presets) > 1:
        raise ConfigError(f"{' '.join(presets)}: give at most one preset, then key=value; see --help")
    overrides = [word for word in arguments if "=" in word]
    unread = next((word.partition("=")[0] for word in overrides if not reads("plan", word.partition("=")[0])), None)
    if unread:
        raise ConfigError(f"{unread}: a plan does not depend on it; see `kosmosg plan --help` for what it reads")
    return load(stage, presets[0] if presets else JOBS["plan"].preset, overrides)


def _plan(stage: str, experiment: Experiment) -> StagePlan:
    decoder = decoder_cost(experiment.decoder)
    if experiment.data.precomputed == "always":
        decoder = replace(decoder, encode_flops=0.0, text_flops=0.0, text_parameters=0)
    cost = stage_cost(stage, _model(experiment), decoder, experiment.data.weights)
    return plan_stage(cost, experiment.train, experiment.scale, experiment.engine)


def _model(experiment: Experiment) -> KosmosGConfig:
    """The model's configuration: a new one for the preset's tokenizer, or that of the model it starts from."""
    settings = experiment.model
    load_plugins()
    if settings.init in MODEL_SHAPES:
        # The paper's shape has a fixed vocabulary, so its tokenizer is not needed for planning.
        if settings.init == "paper":
            return KosmosGConfig.paper()
        processor = KosmosGProcessor.from_sentencepiece(tokenizer_path(settings.tokenizer))
        return new_config(settings.init, processor.vocab_size)
    return read_config(resolve_model(settings.init))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of `python -m jobs.plan`; ends the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(word in ("-h", "--help") for word in given):
        print(usage("plan"))
        sys.exit(0)
    try:
        if all("=" in word for word in given):
            echo(f"plan: no preset given, using `{JOBS['plan'].preset}`")
        plans = plan(given)
        shared = _experiment(STAGES[-1], given)
    except KosmosGError as error:
        echo_error("kosmosg plan", error)
        sys.exit(2)
    print("\n".join(render(plans, shared.scale, shared.engine)))
    sys.exit(0 if all(one.possible for one in plans) else 1)


if __name__ == "__main__":
    main()
