"""The whole of a run as one value, and the door through which every job starts.

`Experiment` only gathers: each section class lives beside what it configures. A job module is a docstring, a function
`run(experiment)` and two lines:

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

from jobs.settings import JOBS, JOBS_OF_JOBS, reads, usage
from kosmosg.data.templates.instruct import InstructTemplates
from kosmosg.data.templates.pretrain import PretrainTemplates
from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.stages.align import AlignObjective
from kosmosg.stages.instruct import InstructObjective
from kosmosg.stages.pretrain import PretrainObjective
from kosmosg_platform.config import Section, resolve
from kosmosg_platform.console import echo, quiet_libraries
from kosmosg_platform.datasets.steps import BuildConfig
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
    """What an edit changes, one of these for each; one that stands here twice is twice as frequent."""
    questions: int = Field(default=3000, ge=0)
    """Caption records that ask about an image and answer, for stage 1."""
    seed: int = 0
    """Seed of all scenes; the same seed gives the same records."""


class ToyworldBuildConfig(Section):
    """How thoroughly the job `toyworld` trains and measures its decoder."""

    effort: float = Field(default=1.0, gt=0)
    """Share of the shipped weights' steps, for every part; 0.01 only shows that everything runs."""
    scenes: int = Field(default=192, ge=1)
    """Held-out scenes for each row of the scores."""
    seed: int = 0
    """Seed of all weights and all data."""


class TemplatesConfig(Section):
    """The random choices by which records become training samples."""

    pretrain: PretrainTemplates = PretrainTemplates()
    instruct: InstructTemplates = InstructTemplates()


class DemoConfig(Section):
    """What `demo` runs."""

    preset: str = "toyworld"
    """Preset of the demo's jobs."""
    endpoint: str = "toyworld"
    """Preset of the demo's endpoint (serving/presets)."""
    settings: tuple[str, ...] = ()
    """Further key=value for all of the demo's jobs."""


class EvaluateConfig(Section):
    """What `evaluate` measures. Null settings are those of the protocol; changing one changes its id."""

    protocol: str = "toyworld"
    """`toyworld`, `dreambench-kosmosg`, `dreambench`, `coco-kosmosg`, `coco-clean` or `coco-metaquery`."""
    models: dict[str, str] = Field(default_factory=dict)
    """Models to judge, by their name in table and sheet: each `toyworld:STAGE`, a folder, a URL or a Hub id; empty
    takes the furthest stage under `output`."""
    data: Path | None = None
    """Folder of DreamBench's subjects, of COCO, or of captions and images; the toy world needs none."""
    weights: dict[str, str] = Field(default_factory=dict)
    """Where feature networks are, if not on the Hub: dino, clip (folders), inception (file)."""
    subjects: tuple[str, ...] = ()
    """Only these subjects of DreamBench; empty takes all 30."""
    prompts: int | None = Field(default=None, ge=1)
    """Prompts of each subject (the first ones), or captions."""
    pictures: int | None = Field(default=None, ge=1)
    """Images of each prompt."""
    size: int | None = Field(default=None, ge=8)
    """Pixels a side of what is drawn."""
    cases: int = Field(default=32, ge=1)
    """World: prompts of each kind (one, two and three entities), all with held-out subjects."""
    style: Literal["class", "image"] = "image"
    """World: `image` asks for "<i> and <i> at sea", `class` for "a ball <i> and a cat <i> at sea"."""
    text_only: bool = True
    """World: also ask the last model in plain words, without images: what it would draw if it did not look."""
    scheduler: str | None = None
    """Scheduler of the denoising, a name of `kosmosg.diffusion.schedulers`."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps of an image."""
    guidance: float | None = Field(default=None, ge=0)
    """Classifier-free guidance."""
    seed: int = Field(default=0, ge=0)
    """Seed of prompts and noise."""
    batch: int | None = Field(default=None, ge=1)
    """Prompts drawn together."""
    rows: int = Field(default=12, ge=1)
    """Rows of the contact sheet: the first prompts of each kind in turn."""


class AblationConfig(Section):
    """What `ablation` trains and how it judges."""

    preset: str = "toyworld"
    """Preset of its trainings."""
    start: Literal["shipped", "nothing"] = "shipped"
    """Where stage 3 starts: from the stages 1 and 2 that ship, or from new ones, trained here first."""
    finished: tuple[str, ...] = ()
    """Exports that count as further seeds of the whole recipe, such as `toyworld:instruct`."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of stage 3 of the whole recipe."""
    steps: int | None = Field(default=None, ge=1)
    """Steps of the whole recipe's stage 3; null takes the preset's."""
    second_part: tuple[str, ...] = ()
    """Settings of a second run of stage 3, which resumes from the model of the first; empty for none. Variants have
    the first part only."""
    ablations: tuple[str, ...] = ()
    """Which variants of jobs/ablation/variants.py are trained as well; empty trains all, `none` none."""
    ablation_steps: int = Field(default=800, ge=1)
    """Steps of each variant's stage 3, the unchanged recipe among them."""
    ablation_seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of each variant."""
    cases: int = Field(default=192, ge=2)
    """Prompts of each kind (one, two, three entities, edits) for the whole recipe."""
    ablation_cases: int = Field(default=96, ge=2)
    """Prompts of each kind for the variants."""
    guidances: tuple[float, ...] = Field(default=(1.5, 3.0, 5.0), min_length=1)
    """Strengths of guidance that are tried, on subjects of the training set; the best is used for everything."""
    validation_cases: int = Field(default=48, ge=2)
    """Prompts of each kind for that."""
    rows: int = Field(default=12, ge=1)
    """Rows of each contact sheet: the first prompts of each kind in turn."""
    settings: tuple[str, ...] = ()
    """Further key=value for all of the ablation study's jobs."""


class GenerateConfig(Section):
    """What `generate` draws: the prompts of a file (`source`), or one prompt."""

    model: str | None = None
    """`toyworld:STAGE`, a folder, a URL or a Hub id; null takes the furthest stage under `output`."""
    prompt: str = ""
    """The prompt when there is no `source`; `<i>` marks the place of each image."""
    images: tuple[Path, ...] = ()
    """Its image files, in the order of their places."""
    n: int = Field(default=1, ge=1)
    """Images of each prompt."""
    steps: int | None = Field(default=None, ge=1)
    """Denoising steps; null takes the decoder's usual number."""
    guidance: float | None = Field(default=None, ge=0)
    """Classifier-free guidance; null takes the decoder's usual strength."""
    negative: str | None = None
    """What not to draw."""
    seed: int = Field(default=0, ge=0)
    """Seed of the noise. Image i of prompt k has the seed that its line gives, or this + k * n, plus i."""
    batch: int = Field(default=8, ge=1)
    """Prompts that are drawn together."""


class Experiment(StageExperiment):
    """One run. Order of precedence: these defaults < preset < the preset's `jobs.<job>` < key=value."""

    source: str | None = None
    """What `build_dataset` reads (a folder or a file), the prompts that `generate` draws (.jsonl), or the run folder
    that `export` takes."""
    dest: Path | None = None
    """Where `build_dataset`, `generate` and `export` write; null means under `output`."""
    limit: int | None = Field(default=None, ge=1)
    """Use at most this many source items; null means all."""
    templates: TemplatesConfig = TemplatesConfig()
    pretrain: PretrainObjective = PretrainObjective()
    align: AlignObjective = AlignObjective()
    instruct: InstructObjective = InstructObjective()
    toyworld: ToyworldConfig = ToyworldConfig()
    build: BuildConfig = BuildConfig()
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

    Exit codes: 0 done, 2 a mistake of the user (one sentence on standard error), 130 stopped from the keyboard.
    Anything else that goes wrong keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    module = import_module(f"jobs.{job}")
    # `python -m` names the module __main__; Ray workers must find the job's classes under their real name.
    run = getattr(module, run.__name__)
    if any(argument in ("-h", "--help") for argument in given):
        print(usage(job))
        sys.exit(0)
    quiet_libraries()
    try:
        experiment = from_arguments(job, given)
        run(experiment)
    except KosmosGError as error:
        print(f"kosmosg {job}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"kosmosg {job}: stopped; the same command resumes from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def from_arguments(job: str, arguments: Sequence[str]) -> Experiment:
    """`["toyworld", "train.steps=10"]` as an experiment; without a preset the job's default is used, and named.

    Raises ConfigError, also for a setting that the job does not read: it would change nothing.
    """
    presets = [argument for argument in arguments if "=" not in argument]
    if len(presets) > 1 or any(argument.startswith("-") for argument in presets):
        raise ConfigError(f"{' '.join(presets)}: give at most one preset, then key=value; see --help")
    if not presets:
        echo(f"{job}: no preset was named, so with `{JOBS[job].preset}`")
    overrides = [argument for argument in arguments if "=" in argument]
    experiment = load(job, presets[0] if presets else JOBS[job].preset, overrides)
    for argument in overrides:
        refuse_unread(job, argument, experiment)
    return experiment


def refuse_unread(job: str, argument: str, experiment: Experiment) -> None:
    """Raise ConfigError for a key=value that the job does not read, with what it could mean instead."""
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
