"""All settings of a run as one value, and the entry point of every job.

`Experiment` only collects the sections; each section class lives next to what it configures. A job module is a
docstring, a function `run(experiment)` and two lines:

    if __name__ == "__main__":
        main("pretrain", run)
"""

import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs.settings import JOBS, JOBS_OF_JOBS, print_usage, reads
from jobs.stored_results import stored_results
from kosmosg.data.near_duplicates import RADIUS
from kosmosg.data.templates.instruct import InstructTemplates
from kosmosg.data.templates.pretrain import PretrainTemplates
from kosmosg.errors import ConfigError, KosmosGError, UnavailableError
from kosmosg.stages.align import AlignObjective
from kosmosg.stages.instruct import InstructObjective
from kosmosg.stages.pretrain import PretrainObjective
from kosmosg_platform.config import Section, resolve
from kosmosg_platform.console import echo, echo_error, quiet_libraries
from kosmosg_platform.datasets.steps import BuildConfig
from kosmosg_platform.inference.precompute import PrecomputeConfig
from kosmosg_platform.planning.build_plan import BuildPlanConfig
from kosmosg_platform.planning.rehearsal import RehearseConfig
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.stores.location import Location
from kosmosg_platform.tracking.registry import look_in
from kosmosg_platform.training.stage_recipe import StageExperiment

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "tiny"


EditKind = Literal["ground", "time", "color", "pattern", "kind"]
EDIT_KINDS: tuple[EditKind, ...] = ("ground", "ground", "time", "color", "pattern", "kind")


class ToyworldConfig(Section):
    """How much of the toy world `build_dataset toyworld` generates."""

    scenes: int = Field(default=8000, ge=1)
    """Composition records."""
    edits: int = Field(default=3000, ge=0)
    """Edit records (before, instruction, after)."""
    edit_kinds: tuple[EditKind, ...] = Field(default=EDIT_KINDS, min_length=1)
    """What edits change, one of these per edit; one that is listed twice is twice as frequent."""
    questions: int = Field(default=3000, ge=0)
    """Caption records with a question about an image and its answer, for stage 1."""
    seed: int = 0
    """Seed of all scenes; the same seed gives the same records."""


class ToyworldBuildConfig(Section):
    """How thoroughly the job `toyworld` trains and measures its decoder."""

    effort: float = Field(default=1.0, gt=0)
    """Training steps of every part, as a fraction of those of the shipped weights; 0.01 only checks that it runs."""
    scenes: int = Field(default=192, ge=1)
    """Held-out scenes per row of the scores."""
    seed: int = 0
    """Seed of all weights and all data."""


class TemplatesConfig(Section):
    """The random choices made when records become training samples."""

    pretrain: PretrainTemplates = PretrainTemplates()
    instruct: InstructTemplates = InstructTemplates()


class DemoConfig(Section):
    """What `demo` runs."""

    preset: str = "toyworld"
    """Preset of the demo's jobs."""
    endpoint: str = "toyworld"
    """Preset of the demo's endpoint (serving/presets)."""
    settings: tuple[str, ...] = ()
    """Additional key=value settings for all of the demo's jobs."""


class EvaluateConfig(Section):
    """What `evaluate` measures. Null takes the protocol's value; changing a setting changes the protocol's id."""

    protocol: str = "toyworld"
    """`toyworld`, `dreambench-kosmosg`, `dreambench`, `coco-kosmosg`, `coco-clean` or `coco-metaquery`."""
    models: dict[str, str] = Field(default_factory=dict)
    """Models to evaluate, by the name to show in the report: each `toyworld:STAGE`, a folder, a URL or a Hub id; empty
    takes the latest finished stage under `output`."""
    data: Path | None = None
    """Folder of DreamBench's subjects, of COCO, or of captions and images; not needed for the toy world."""
    weights: dict[str, str] = Field(default_factory=dict)
    """Local paths of feature networks, to be used instead of the Hub: dino, clip (folders), inception (file)."""
    subjects: tuple[str, ...] = ()
    """Only these subjects of DreamBench; empty takes all 30."""
    prompts: int | None = Field(default=None, ge=1)
    """Number of prompts per subject (the first ones), or of captions."""
    pictures: int | None = Field(default=None, ge=1)
    """Images per prompt."""
    size: int | None = Field(default=None, ge=8)
    """Side of the generated images in pixels."""
    cases: int = Field(default=32, ge=1)
    """Toy world: prompts per set (one, two and three entities), all with held-out subjects."""
    style: Literal["class", "image"] = "image"
    """Toy world: `image` prompts are like "<i> and <i> at sea", `class` ones like "a ball <i> and a cat <i> at sea"."""
    text_only: bool = True
    """Toy world: also generate from text alone with the last model, to show what it does without the images."""
    scheduler: str | None = None
    """Scheduler, by a name of `kosmosg.diffusion.schedulers`."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps."""
    guidance: float | None = Field(default=None, ge=0)
    """Classifier-free guidance."""
    seed: int = Field(default=0, ge=0)
    """Seed of prompts and noise."""
    batch: int | None = Field(default=None, ge=1)
    """Prompts generated together."""
    rows: int = Field(default=12, ge=1)
    """Rows of the contact sheet: the first prompts of each set in turn."""


class AblationConfig(Section):
    """What `ablation` trains and how it judges."""

    preset: str = "toyworld"
    """Preset of its training runs."""
    start: Literal["shipped", "nothing"] = "shipped"
    """What stage 3 starts from: the shipped stages 1 and 2 (`shipped`), or ones trained here first (`nothing`)."""
    finished: tuple[str, ...] = ()
    """Exports that count as additional seeds of the whole recipe, such as `toyworld:instruct`."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds with which stage 3 of the whole recipe is trained."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of the whole recipe's stage 3; null takes the preset's."""
    second_part: tuple[str, ...] = ()
    """Settings of a second run of stage 3 that starts from the model of the first; empty for none. Variants have
    the first part only."""
    ablations: tuple[str, ...] = ()
    """Variants of jobs/ablation/variants.py to train as well; empty trains all, `[none]` trains none."""
    ablation_steps: int = Field(default=800, ge=1)
    """Stage 3 steps of each variant, including the unchanged recipe as the reference."""
    ablation_seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds with which each variant is trained."""
    cases: int = Field(default=192, ge=2)
    """Prompts per set (one, two, three entities, edits) for the whole recipe."""
    ablation_cases: int = Field(default=96, ge=2)
    """Prompts per set for the variants."""
    guidances: tuple[float, ...] = Field(default=(1.5, 3.0, 5.0), min_length=1)
    """Guidance scales to try on training subjects; the best one is used for everything."""
    validation_cases: int = Field(default=48, ge=2)
    """Prompts per set for choosing the guidance scale."""
    rows: int = Field(default=12, ge=1)
    """Rows of each contact sheet: the first prompts of each set in turn."""
    settings: tuple[str, ...] = ()
    """Additional key=value settings for all of the ablation study's jobs."""


class GenerateConfig(Section):
    """What `generate` generates: the prompts of a file (`source`), or one prompt."""

    model: str | None = None
    """`toyworld:STAGE`, a folder, a URL or a Hub id; null takes the latest finished stage under `output`."""
    prompt: str = ""
    """The prompt if there is no `source`; `<i>` marks the place of each image."""
    images: tuple[Path, ...] = ()
    """Its image files, in order."""
    n: int = Field(default=1, ge=1)
    """Images per prompt."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps; null takes the decoder's default."""
    guidance: float | None = Field(default=None, ge=0)
    """Classifier-free guidance scale; null takes the decoder's default."""
    negative: str | None = None
    """Negative prompt: what the images should not show."""
    seed: int = Field(default=0, ge=0)
    """Seed of the noise. Image i of prompt k uses the seed given in the file, or this + k * n, plus i."""
    batch: int = Field(default=8, ge=1)
    """Prompts generated together."""


class RetryConfig(Section):
    """What `build_dataset` tries again."""

    reason: str = ""
    """A step (decode, caption), a reason (unreadable) or both ("decode: unreadable"): shards with rows that were
    rejected for it are built again; answers that are kept are not asked for again."""


class HashListConfig(Section):
    """How `hash_list` looks for copies."""

    radius: int = Field(default=RADIUS, ge=0, le=15)
    """Bits of 64 by which two hashes of the same image may differ."""


class Experiment(StageExperiment):
    """One run. Order of precedence: these defaults < preset < the preset's `jobs.<job>` < key=value."""

    source: str | None = None
    """Input: the folder or file that `build_dataset` reads, the prompts (.jsonl) of `generate`, or the run folder or
    model that `export` takes."""
    dest: Location | None = None
    """Where `build_dataset`, `generate` and `export` write, on a disk or in an object store; null means a folder under
    `output`."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows of the source, about this many: sources are read in ranges. Null means all."""
    templates: TemplatesConfig = TemplatesConfig()
    pretrain: PretrainObjective = PretrainObjective()
    align: AlignObjective = AlignObjective()
    instruct: InstructObjective = InstructObjective()
    toyworld: ToyworldConfig = ToyworldConfig()
    build: BuildConfig = BuildConfig()
    retry: RetryConfig = RetryConfig()
    plan: BuildPlanConfig = BuildPlanConfig()
    hash_list: HashListConfig = HashListConfig()
    precompute: PrecomputeConfig = PrecomputeConfig()
    rehearse: RehearseConfig = RehearseConfig()
    toyworld_build: ToyworldBuildConfig = ToyworldBuildConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    generate: GenerateConfig = GenerateConfig()
    ablation: AblationConfig = AblationConfig()
    demo: DemoConfig = DemoConfig()


def load(job: str, preset: str = DEFAULT_PRESET, overrides: Sequence[str] = ()) -> Experiment:
    """The resolved experiment of one job. Raises ConfigError."""
    return resolve(Experiment, preset, job, overrides, PRESETS)


def main(job: str, run: Callable[[Experiment], Any], arguments: Sequence[str] | None = None) -> None:
    """Entry of `python -m jobs.JOB [PRESET] [key=value ...] [--help]`; ends the process.

    Exit codes: 0 for success, 2 for user errors and 1 for a store or disk that is away or full (one sentence on
    standard error each), 130 if interrupted from the keyboard.
    All other errors keep their traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    module = import_module(f"jobs.{job}")
    # `python -m` names the module __main__; Ray workers must find the job's classes under their real module name.
    run = getattr(module, run.__name__)
    if any(argument in ("-h", "--help") for argument in given):
        print_usage(job)
        sys.exit(0)
    quiet_libraries()
    try:
        experiment = from_arguments(job, given)
        if "tracking" in JOBS[job].reads:
            look_in(experiment.tracking.store(RunPaths(experiment.output).tracking, create=False))
        with stored_results(job, experiment):
            run(experiment)
    except KosmosGError as error:
        echo_error(f"kosmosg {job}", error)
        sys.exit(2)
    except UnavailableError as error:
        echo_error(f"kosmosg {job}", error)
        sys.exit(1)
    except KeyboardInterrupt:
        echo_error(f"kosmosg {job}", "interrupted; run the same command again to resume")
        sys.exit(130)
    sys.exit(0)


def from_arguments(job: str, arguments: Sequence[str]) -> Experiment:
    """`["toyworld", "train.steps=10"]` as an experiment. Without a preset, the job's default is used and printed.

    Raises ConfigError, also for a setting that the job does not read, because it would have no effect.
    """
    preset, overrides = preset_and_settings(arguments)
    if preset is None:
        echo(f"{job}: no preset given, using `{JOBS[job].preset}`")
    experiment = load(job, preset or JOBS[job].preset, overrides)
    for argument in overrides:
        refuse_unread(job, argument, experiment)
    return experiment


def preset_and_settings(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The preset among the words of a command line, if there is one, and the key=value. Raises ConfigError."""
    presets = [argument for argument in arguments if "=" not in argument]
    if len(presets) > 1 or any(argument.startswith("-") for argument in presets):
        raise ConfigError(f"{' '.join(presets)}: give at most one preset, then key=value; see --help")
    return (presets[0] if presets else None), [argument for argument in arguments if "=" in argument]


def refuse_unread(job: str, argument: str, experiment: Experiment) -> None:
    """Raise ConfigError for a key=value that the job does not read, and say where it belongs."""
    key = argument.partition("=")[0].strip()
    if reads(job, key):
        return
    if job in JOBS_OF_JOBS:
        wanted = json.dumps([*getattr(experiment, job).settings, argument], ensure_ascii=False)
        raise ConfigError(
            f"{key}: `{job}` starts other jobs, with the settings of {job}.preset, and reads itself only "
            f"{', '.join(JOBS[job].reads)}; for all of its jobs: '{job}.settings={wanted}'"
        )
    others = [name for name in JOBS if name not in JOBS_OF_JOBS and reads(name, key)]
    raise ConfigError(
        f"{key}: `{job}` does not read it, so it would change nothing; it is read by {', '.join(others) or 'no job'}"
    )
