"""Estimate what training or a dataset build takes before running it.

    kosmosg plan paper scale.workers=64                                            # the three training stages
    kosmosg plan build_dataset photos plan.images=9_000_000 plan.pilot=my_pilot    # a dataset build

Of each training stage: memory per GPU, FLOPs, days and storage.

Nothing is trained or loaded: weights and FLOPs are counted from the shapes. For every device that cannot run the
preset, the reason and a remedy are printed.

Exit code 1 if a stage fits on none of the devices; 2, with one sentence, for settings that make sense on none.

Of a dataset build: CPU-hours and GPU-hours by step, days, storage, the driver's memory and, where a price is given,
cost. The rates are those that a small build of the same steps, on the same kind of machine, has measured of itself.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jobs.build_dataset import chosen_source
from jobs.experiment import Experiment, load, preset_and_settings
from jobs.settings import JOBS, print_usage, reads
from kosmosg import KosmosGConfig, KosmosGProcessor
from kosmosg.checkpoint.export import read_config
from kosmosg.errors import CheckpointError, ConfigError, KosmosGError
from kosmosg.hub import resolve_model
from kosmosg.plugins import load_plugins
from kosmosg.shapes import MODEL_SHAPES, new_config
from kosmosg_platform.console import echo, echo_error
from kosmosg_platform.planning.build_plan import plan_build, read_pilot, render_build
from kosmosg_platform.planning.flops import decoder_cost, stage_cost
from kosmosg_platform.planning.plan import StagePlan, plan_stage, render
from kosmosg_platform.run_paths import STAGES
from kosmosg_platform.training.engine_config import check
from kosmosg_platform.training.initial_model import NEW, tokenizer_path
from kosmosg_platform.training.lr_schedule import batch_plan

BUILD = "build_dataset"
GPU_PRICE = "plan.dollars_per_gpu_hour"
HIGHEST_RATE = 1.0
BUILD_SECTIONS = ("plan", "build", "toyworld")


def plan(arguments: Sequence[str]) -> list[StagePlan]:
    """The plans of the three stages, each with the settings of its own job. Raises ConfigError."""
    experiments = {stage: _experiment(stage, arguments) for stage in STAGES}
    return [_plan(stage, experiment) for stage, experiment in experiments.items()]


def _experiment(stage: str, arguments: Sequence[str]) -> Experiment:
    preset, overrides = preset_and_settings(arguments)
    for key in (word.partition("=")[0] for word in overrides):
        if not reads("plan", key) or _of_a_build(key) != (stage == BUILD):
            what = "a dataset build" if stage == BUILD else "the training stages"
            raise ConfigError(f"{key}: a plan of {what} does not depend on it; see `kosmosg plan --help`")
    return load(stage, preset or JOBS["plan"].preset, overrides)


def _of_a_build(key: str) -> bool:
    return key.partition(".")[0] in BUILD_SECTIONS and key != GPU_PRICE


def plan_dataset(arguments: Sequence[str]) -> Iterator[str]:
    """The plan of a dataset build, as text. Raises ConfigError and DataError."""
    experiment = _experiment(BUILD, arguments)
    config, build = experiment.plan, experiment.build
    if config.pilot is None:
        preset = next((word for word in arguments if "=" not in word), JOBS["plan"].preset)
        raise ConfigError(
            "plan.pilot: the rates of a build are measured, not assumed; build a pilot first, `kosmosg run "
            f"build_dataset {preset} source=SOURCE limit=1000 dest=PILOT`, with the build.* settings of the whole, "
            "then give plan.pilot=PILOT"
        )
    source = chosen_source(experiment)
    pilot = read_pilot(config.pilot)
    steps, settings = build.pipeline_steps(source), build.settings(source)
    yield from render_build(plan_build(config, pilot, steps, settings, build.chunk_rows), pilot, config)


def _plan(stage: str, experiment: Experiment) -> StagePlan:
    decoder = decoder_cost(experiment.decoder)
    if experiment.data.precomputed == "always":
        decoder = replace(decoder, encode_flops=0.0, text_flops=0.0, text_parameters=0)
    model = model_config(experiment)
    _refuse_nonsense(stage, experiment, model)
    cost = stage_cost(stage, model, decoder, experiment.data.weights)
    return plan_stage(cost, experiment.train, experiment.scale, experiment.engine)


def _refuse_nonsense(stage: str, experiment: Experiment, model: KosmosGConfig) -> None:
    """Raise ConfigError for settings that no device makes sensible."""
    rate, longest = experiment.train.lr, experiment.data.max_seq_len
    if rate > HIGHEST_RATE:
        raise ConfigError(
            f"train.lr: {stage} would learn at {rate:g}, and AdamW moves every weight by about that much a step; rates "
            f"are at most {HIGHEST_RATE:g}, usual ones 1e-5 to 1e-3"
        )
    if longest is not None and longest > model.max_tokens:
        raise ConfigError(
            f"data.max_seq_len: {longest:,} tokens, but the model of {stage} reads at most {model.max_tokens:,}; give "
            "no more than that"
        )
    batch_plan(experiment.train, experiment.scale.workers)
    check(experiment.engine, experiment.scale.use_gpu)


def model_config(experiment: Experiment) -> KosmosGConfig:
    """The model's configuration: a new one for the preset's tokenizer, or that of the model it starts from."""
    settings = experiment.model
    load_plugins()
    if experiment.parent not in (None, NEW):
        try:
            return read_config(resolve_model(str(experiment.parent)))
        except CheckpointError as error:
            raise ConfigError(f"parent: {error}") from None
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
        print_usage("plan")
        sys.exit(0)
    try:
        whole = given[:1] != [BUILD]
        if all("=" in word for word in (given if whole else given[1:])):
            echo(f"plan: no preset given, using `{JOBS['plan'].preset}`")
        if not whole:
            print("\n".join(plan_dataset(given[1:])))
            sys.exit(0)
        plans = plan(given)
        shared = _experiment(STAGES[-1], given)
    except KosmosGError as error:
        echo_error("kosmosg plan", error)
        sys.exit(2)
    print("\n".join(render(plans, shared.scale, shared.engine, shared.plan.dollars_per_gpu_hour)))
    sys.exit(0 if all(one.possible for one in plans) else 1)


if __name__ == "__main__":
    main()
