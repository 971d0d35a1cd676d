"""The ablation study: train the recipe and its variants, judge all of them on the same prompts, write one page.

Stage 3 is trained for several seeds through the platform's own jobs, then once for each variant of
`jobs.ablation.variants`, all variants for the same number of steps. All models are judged on held-out subjects, with
the same prompts and noise; the guidance scale is chosen on other prompts, with training subjects.

Writes results.md (with a folder of images), report.html and results.json to <output>/ablation, or the page to
dest=FOLDER. `toyworld dest=docs` made docs/results.md and takes two to three hours on two cores; `minutes` reproduces
the trend of its main rows. It can be interrupted at any time: the same command resumes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from jobs import align, build_dataset, evaluate, instruct, pretrain
from jobs.ablation.page import SIGNATURE, AblationResults, AblationRow, ablation_page
from jobs.ablation.variants import REFERENCE, Variant, chosen
from jobs.experiment import AblationConfig, Experiment, load
from kosmosg import Prompt
from kosmosg.checkpoint.digest import model_digest
from kosmosg.checkpoint.export import load_export
from kosmosg.data.contact_sheet import SheetRow, result_sheet
from kosmosg.errors import ConfigError
from kosmosg.eval.statistics import measure_shares
from kosmosg.hub import resolve_model
from kosmosg.toyworld.benchmark import Correctness, Style, judge, toyworld_prompts
from kosmosg.toyworld.edits import EditPrompt, edit_prompts, judge_edits
from kosmosg.toyworld.judging import SETS, SetPrompt, in_turn, prompts_of_sets
from kosmosg.toyworld.reading import answer, caption_cases, question_cases, reading_scores
from kosmosg.toyworld.trials import measure_trials
from kosmosg_platform.cluster.resources import require_resources
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import digest, plain, to_yaml
from kosmosg_platform.console import echo, read_metrics
from kosmosg_platform.evaluation.runner import IMAGES, sampling_of
from kosmosg_platform.inference.generation import generate_images, open_image
from kosmosg_platform.inference.sampling import GenerationRequest
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.storage import write_json, write_text
from kosmosg_platform.tracking import Run

VALIDATION_SEED = 1  # of the prompts on which guidance is chosen; they have training subjects
_FREE = ("scale.", "tracking.", "evaluate.")  # settings that do not change what a training run learns
FIRST_PART = "stage 3, first part"  # name of its rows if there is a second part


@dataclass(frozen=True)
class Trained:
    """The models of one row."""

    name: str
    exports: tuple[Path, ...]
    """One for each seed."""


class Ablation:
    """State shared by the steps of one ablation study."""

    def __init__(self, experiment: Experiment) -> None:
        self.settings = experiment.ablation
        layout, tracking = RunPaths(experiment.output), experiment.tracking
        self.folder = layout.job("ablation")
        key = digest({"folder": str(self.folder), "settings": plain(self.settings)})
        params = plain(self.settings)
        self.run = Run.open(tracking, layout, "ablation", self.folder, key, tags={"job": "ablation"}, params=params)
        self.shared = (
            f"output={self.folder}",
            f"tracking.uri={self.run.uri}",
            f"tracking.experiment={json.dumps(tracking.experiment)}",
            f"tracking.parent_run={json.dumps(self.run.id or key)}",
            *self.settings.settings,
        )

    def job(self, name: str, *words: str) -> Experiment:
        """The experiment of one of the ablation study's jobs."""
        return load(name, self.settings.preset, [*self.shared, *words])

    def parents(self) -> dict[str, str]:
        """The models that stage 3 may start from, by stage; trained first unless the shipped ones are used."""
        if self.settings.start == "shipped":
            return {"pretrain": "toyworld:pretrain", "align": "toyworld:align", "new": "new"}
        first = pretrain.run(self.job("pretrain")).export
        second = align.run(self.job("align", f"parent={first}")).export
        return {"pretrain": str(first), "align": str(second), "new": "new"}

    def train(self, variant: Variant, parents: Mapping[str, str], seeds: Sequence[int], steps: int | None) -> Trained:
        """Train stage 3 of a variant, once per seed; finished runs are reused."""
        exports = []
        for seed in seeds:
            echo(f"ablation: {variant.name}, seed {seed}")
            words = [f"parent={parents[variant.parent]}", f"train.seed={seed}", *variant.settings]
            result = instruct.run(self.job("instruct", *words, *([f"train.steps={steps}"] if steps else [])))
            exports.append(result.export)
        return Trained(variant.name, tuple(exports))

    def go_on(self, first: Trained) -> Trained:
        """The second part of the whole recipe, seed by seed; the first part if there is none."""
        settings = self.settings
        if not settings.second_part:
            return first
        data, exports = self.folder / "second_part", []
        build_dataset.run(self.job("build_dataset", f"dest={data}", *settings.second_part))
        for seed, export in zip(settings.seeds, first.exports, strict=True):
            echo(f"ablation: second part, seed {seed}")
            words = [f"parent={export}", f"train.seed={seed}", f"data.folder={data}", *settings.second_part]
            exports.append(instruct.run(self.job("instruct", *words)).export)
        return Trained(first.name, tuple(exports))


@dataclass(frozen=True)
class Answers:
    """What one model generated."""

    styles: Mapping[str, list[Image.Image]]
    """By style of the prompts, one image for each case."""
    edits: list[Image.Image]


class Judge:
    """Generates with each model at one guidance scale, and judges the images."""

    def __init__(self, ablation: Ablation, guidance: float, cases: int) -> None:
        self.folder = ablation.folder
        self.experiment = ablation.job("evaluate", f"evaluate.cases={cases}", f"evaluate.guidance={guidance}")

    def cases(self, style: Style) -> list[SetPrompt]:
        """The prompts of every set; all styles request the same scenes."""
        settings = self.experiment.evaluate
        return prompts_of_sets(settings.cases, settings.seed, style)

    def generate(self, name: str, export: Path, prompts: Sequence[Prompt]) -> list[Image.Image]:
        """One image per prompt; the noise of an image depends on its position in the list."""
        sampling = sampling_of(evaluate.settle(self.experiment.evaluate))
        requests = [GenerationRequest.of(prompt) for prompt in prompts]
        title, folder = f"ablation: {name}", self.folder / IMAGES
        generated = generate_images(
            title, export, self.experiment.decoder, requests, sampling, self.experiment.scale, folder
        )
        return [open_image(path) for path in generated.paths]

    def interview(
        self, models: Trained, styles: Sequence[Style] = ("image",), edits: Sequence[EditPrompt] = ()
    ) -> list[Answers]:
        """The images of each seed. All styles are generated in one go, because loading a model takes longer than
        generating; edits are generated separately, so that they get the same noise with every model."""
        asked = {style: self.cases(style) for style in styles}
        prompts = [case.prompt for cases in asked.values() for _, case in cases]
        answers = []
        for export in models.exports:
            drawn = iter(self.generate(models.name, export, prompts))
            by_style: dict[str, list[Image.Image]] = {style: list(islice(drawn, len(asked[style]))) for style in styles}
            edited = self.generate(models.name, export, [edit.prompt for edit in edits]) if edits else []
            answers.append(Answers(by_style, edited))
        return answers

    def rows(self, name: str, answers: Sequence[Answers], style: Style = "image") -> list[AblationRow]:
        """The figures of a row, one for each set of prompts."""
        cases, rows = self.cases(style), []
        for number in SETS:
            trials = [correctness_of(number, cases, answer.styles[style]) for answer in answers]
            rows.append(AblationRow(name, number, len(trials[0].background), measure_trials(trials)))
            hue, whole = (rows[-1].figures[key].mean for key in ("hue", "whole"))
            echo(f"ablation: {name}, {number}: hue error {hue:.1f}°  whole subjects {whole:.2f}")
        return rows


def correctness_of(name: str, cases: Sequence[SetPrompt], pictures: Sequence[Image.Image]) -> Correctness:
    """What is right in one set of prompts."""
    chosen_ones = [index for index, (of, _) in enumerate(cases) if of == name]
    return judge([pictures[index] for index in chosen_ones], [cases[index][1].scene for index in chosen_ones])


def tune_guidance(ablation: Ablation, model: Path) -> dict[float, float]:
    """Share of whole subjects by guidance scale, measured on training subjects, never on the held-out ones."""
    settings, found = ablation.settings, {}
    cases = [
        (name, case)
        for name, entities in SETS.items()
        for case in toyworld_prompts(settings.validation_cases, entities, False, VALIDATION_SEED, "image")
    ]
    for guidance in settings.guidances:
        judging = Judge(ablation, guidance, settings.validation_cases)
        pictures = judging.generate(f"guidance {guidance:g}", model, [case.prompt for _, case in cases])
        found[guidance] = float(np.mean([correctness_of(name, cases, pictures).whole.mean() for name in SETS]))
        echo(f"ablation: guidance {guidance:g}: whole subjects {found[guidance]:.3f} (validation)")
    return found


def check_finished(settings: AblationConfig) -> None:
    """Check that models that count as seeds exist and belong to this recipe. Raises ConfigError, CheckpointError."""
    for name in settings.finished:
        model_digest(resolve_model(name))
    others = ["steps"] if settings.steps else []
    others += ["settings"] if any(not word.startswith(_FREE) for word in settings.settings) else []
    others += ["second_part"] if settings.second_part != load("ablation", settings.preset).ablation.second_part else []
    others += ["start"] if settings.start == "nothing" else []
    if settings.finished and others:
        raise ConfigError(
            f"ablation.finished counts {', '.join(settings.finished)} as seeds of the same recipe, but "
            f"ablation.{others[0]} makes it another one; give ablation.finished=[] as well"
        )


def run(experiment: Experiment) -> Path:
    """Train, judge and write the page; returns its path."""
    variants = chosen(experiment.ablation.ablations)
    check_finished(experiment.ablation)
    page_path(experiment)  # refused now, not after hours of training
    scale = load("instruct", experiment.ablation.preset, experiment.ablation.settings).scale
    require_resources(scale.training_workers(), address=scale.address)
    ablation = Ablation(experiment)
    with ablation.run.closing():
        return study(experiment, ablation, variants)


def study(experiment: Experiment, ablation: Ablation, variants: Sequence[Variant]) -> Path:
    """What `run` does, within the study's MLflow run."""
    settings = experiment.ablation
    with connect(ablation.job("instruct")):
        build_dataset.run(ablation.job("build_dataset"))
        parents = ablation.parents()
        first = ablation.train(REFERENCE, parents, settings.seeds, settings.steps)
        trained = ablation.go_on(first)
        recipe = Trained("stage 3", (*(resolve_model(name) for name in settings.finished), *trained.exports))
        aligned = Trained("stage 2 only", (resolve_model(parents["align"]),))
        compared = [
            ablation.train(variant, parents, settings.ablation_seeds, settings.ablation_steps)
            for variant in ([REFERENCE, *variants] if variants else [])
        ]
        guidances = tune_guidance(ablation, recipe.exports[0])
        best = max(guidances, key=lambda value: guidances[value])
        judging, lesser = (Judge(ablation, best, count) for count in (settings.cases, settings.ablation_cases))
        edits = edit_prompts(settings.cases)
        after = judging.interview(recipe, ("image", "full", "text"), edits)
        halfway = judging.interview(first, ("image",), edits) if settings.second_part else []
        before = judging.interview(aligned, ("image", "full"))
        readers: dict[str, str | Path] = {"stage 1": parents["pretrain"], "stage 3": recipe.exports[0]}
        reading = {stage: read_out(stage, export, settings.cases) for stage, export in readers.items()}
        others = {models.name: lesser.interview(models) for models in compared}
    rows = [
        *judging.rows("stage 3", after),
        *(judging.rows(FIRST_PART, halfway) if halfway else []),
        *judging.rows("stage 2 only", before),
        *judging.rows("text only", after, "text"),
        *judging.rows("perfect words, stage 3", after, "full"),
        *judging.rows("perfect words, stage 2", before, "full"),
    ]
    seeds = {f"stage 3, {number}": answer for number, answer in enumerate(after, 1)}
    sheets = {
        "main": sheet(judging, {"stage 2 only": before[0], **seeds}, settings.rows),
        "edits": edit_sheet(edits, after[0].edits, settings.rows),
    }
    if compared:
        sheets["ablations"] = sheet(lesser, {name: answers[0] for name, answers in others.items()}, settings.rows)
    found = AblationResults(
        settings=settings,
        rows=rows,
        edits=[*edit_rows(edits, after), *(edit_rows(edits, halfway, ", first part") if halfway else [])],
        ablations=[row for name, answers in others.items() for row in lesser.rows(name, answers)],
        guidances=guidances,
        guidance=best,
        reading=reading,
        sheets=sheets,
        losses={models.name: losses(models.exports[0]) for models in compared or [trained]},
    )
    return publish(experiment, ablation, found)


def read_out(stage: str, export: str | Path, count: int) -> dict[str, float]:
    """Exact-match accuracy of a model's captions and answers, by kind."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of reading the weights
    model, processor = load_export(resolve_model(export))
    cases = caption_cases(count) + question_cases(count)
    found = reading_scores(cases, answer(model.mllm.eval(), processor, cases))
    echo(f"ablation: {stage}: captions {found['caption']:.2f}, answers {found['question']:.2f}")
    return found


def sheet(judging: Judge, columns: Mapping[str, Answers], count: int) -> Image.Image:
    """The first prompts, with one column of images per model."""
    generated = {name: answer.styles["image"] for name, answer in columns.items()}
    cases = judging.cases("image")
    rows = [
        SheetRow(cases[index][1].prompt, [images[index] for images in generated.values()])
        for index in in_turn(cases)[:count]
    ]
    return result_sheet(rows, list(generated))


def edit_sheet(prompts: Sequence[EditPrompt], pictures: Sequence[Image.Image], count: int) -> Image.Image:
    """The first edits."""
    pairs = list(zip(prompts, pictures, strict=True))[:count]
    return result_sheet([SheetRow(prompt.prompt, [picture]) for prompt, picture in pairs], ["stage 3, 1"])


def edit_rows(prompts: Sequence[EditPrompt], answers: Sequence[Answers], note: str = "") -> list[AblationRow]:
    """The figures of all edits, then of each kind of edit."""
    marks = [asdict(judge_edits(answer.edits, prompts)) for answer in answers]
    asked = np.array([prompt.asked for prompt in prompts])
    rows = [AblationRow(f"all{note}", "one", len(prompts), measure_shares(marks))]
    for kind in dict.fromkeys(asked.tolist()):
        of_kind = [{name: values[asked == kind] for name, values in mark.items()} for mark in marks]
        rows.append(AblationRow(f"{kind}{note}", "one", int((asked == kind).sum()), measure_shares(of_kind)))
    return rows


def losses(export: Path) -> list[tuple[float, float]]:
    """The loss curve of a training run: optimizer step, loss. Empty if there is only an export."""
    lines = read_metrics(export.parent / "metrics.jsonl")
    return [(float(line["step"]), float(line["loss"])) for line in lines if "loss" in line]


def page_path(experiment: Experiment) -> Path:
    """Where the page goes. Raises ConfigError when files of that name are there that no ablation wrote."""
    page = (experiment.dest or RunPaths(experiment.output).job("ablation")).absolute() / "results.md"
    images = page.with_suffix("")
    ours = page.is_file() and SIGNATURE in page.read_text(encoding="utf-8", errors="replace")
    found = next((path for path in (page, images) if path.exists()), None)
    if found is not None and not ours:
        raise ConfigError(
            f"dest: {found} is there and was not written by `kosmosg run ablation`, which would overwrite it; move it "
            "away, or give another folder"
        )
    return page


def publish(experiment: Experiment, ablation: Ablation, found: AblationResults) -> Path:
    """The page, the figures, and both in MLflow."""
    report = ablation_page(found)
    page = report.write_markdown(page_path(experiment))
    report.write(ablation.folder / "report.html")
    write_json(ablation.folder / "results.json", found.figures())
    write_text(ablation.folder / "experiment.yaml", to_yaml(experiment))
    run, logged = ablation.run, ablation.run.logged()
    for kind, rows in (("main", found.rows), ("variants", found.ablations), ("edits", found.edits)):
        for row in rows:
            prefix = f"{kind}/{row.name.replace(' ', '_').replace(',', '')}/{row.set}"
            run.log_metrics(logged.new({f"{prefix}/{name}": one.mean for name, one in row.figures.items()}, 0))
    for file in (page, ablation.folder / "report.html", ablation.folder / "results.json"):
        run.log_file(file)
    print(f"page:   {page}\nreport: {ablation.folder / 'report.html'}")
    return page
