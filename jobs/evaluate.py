"""Judge models: the same prompts for all, pictures by Ray Data actors, scores, a contact sheet and a page.

The small world's own judge reads each picture at the places where the prompt expects its entities. All prompts hold
subjects that no training ever saw, shown by reference images from other scenes. Leaves scores.json, sheet.png and
report.html in <output>/evaluate, and the same in MLflow. A model that was judged before with the same settings is not
drawn again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.config import EvaluateConfig, Experiment, main
from kosmosg.eval.sheet import SheetRow, result_sheet
from kosmosg.eval.world import Style, WorldPrompt, world_prompts
from kosmosg.eval.world import score as world_score
from kosmosg_platform.cluster import connect
from kosmosg_platform.config import digest, plain, to_yaml
from kosmosg_platform.journey import score_table
from kosmosg_platform.log import say
from kosmosg_platform.painting import Sampling, open_picture, paint
from kosmosg_platform.report import Figure, Report, Section
from kosmosg_platform.storage import Layout, write_json, write_text
from kosmosg_platform.tracking import Run

SETS = {"one": 1, "two": 2, "three": 3}
"""Name of each set of prompts and the entities in them."""

TEXT_ONLY = "text only"

Case = tuple[str, WorldPrompt]
"""Name of the set, prompt and the scene it asks for."""


def run(experiment: Experiment) -> Path:
    """Judge every model of `evaluate.models`; gives the folder of the results."""
    settings, layout = experiment.evaluate, Layout(experiment.output)
    models = dict(settings.models) or {"model": layout.newest_export()}
    folder = layout.job("evaluate")
    cases = ask(settings, settings.style)
    drawn: dict[str, list[Image.Image]] = {}
    with connect(experiment):
        for variant, export in models.items():
            drawn[variant] = draw(variant, export, cases, experiment, folder)
        scores = [row for variant, pictures in drawn.items() for row in score(variant, cases, pictures)]
        if settings.text_only:
            worded = ask(settings, "text")
            pictures = draw(TEXT_ONLY, list(models.values())[-1], worded, experiment, folder)
            scores += score(TEXT_ONLY, worded, pictures)
    write_json(folder / "scores.json", scores)
    sheet = result_sheet(*sheet_rows(cases, drawn, settings.rows))
    sheet.save(folder / "sheet.png")
    report = Report(
        "Evaluation in the small world",
        f"{settings.cases} prompts of each kind with subjects that no training ever saw, judged by the recogniser.",
        sections=[
            Section("Scores", table=score_table(scores)),
            Section(
                "Pictures", figures=[Figure.of(sheet, "reference images | prompt | results; rows are not selected")]
            ),
        ],
    ).write(folder / "report.html")
    track(experiment, models, scores, [report, folder / "sheet.png", folder / "scores.json"])
    for row in scores:
        say(
            f"evaluate: {row['variant']}, {row['set']}: class {row['kind']:.2f}  pattern {row['pattern']:.2f}  "
            f"hue error {row['hue']:.0f}°  background {row['background']:.2f}  whole subject {row['whole']:.2f}"
        )
    return folder


def ask(settings: EvaluateConfig, style: Style) -> list[Case]:
    """The prompts of every set, in one list; a style asks for the same scenes as another."""
    return [
        (name, case)
        for name, entities in SETS.items()
        for case in world_prompts(settings.cases, entities, held_out=True, seed=settings.seed, style=style)
    ]


def draw(variant: str, export: Path, cases: Sequence[Case], experiment: Experiment, folder: Path) -> list[Image.Image]:
    """One picture for each case, in their order, with as many actors as there are workers."""
    settings = experiment.evaluate
    sampling = Sampling(settings.steps, settings.guidance, batch=settings.batch, seed=settings.seed)
    prompts = [case.prompt for _, case in cases]
    paths = paint(variant, export, experiment.decoder, prompts, sampling, experiment.scale, folder / "pictures")
    return [open_picture(path) for path in paths]


def score(variant: str, cases: Sequence[Case], pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """One row of figures for each set of prompts."""
    rows = []
    for name in SETS:
        chosen = [index for index, (of, _) in enumerate(cases) if of == name]
        pixels = np.stack([np.asarray(pictures[index]) for index in chosen])
        measured = world_score(pixels, [cases[index][1].scene for index in chosen])
        rows.append({"variant": variant, "set": name, "prompts": len(chosen), **measured})
    return rows


def sheet_rows(
    cases: Sequence[Case], drawn: dict[str, list[Image.Image]], count: int
) -> tuple[list[SheetRow], list[str]]:
    """The first prompts of each set in turn: rows and column titles of the sheet."""
    of_set = {name: [index for index, (of, _) in enumerate(cases) if of == name] for name in SETS}
    turns = [index for group in zip(*of_set.values(), strict=True) for index in group]
    rows = [
        SheetRow(cases[index][1].prompt, [pictures[index] for pictures in drawn.values()]) for index in turns[:count]
    ]
    return rows, list(drawn)


def track(experiment: Experiment, models: dict[str, Path], scores: list[dict[str, Any]], files: list[Path]) -> None:
    """The figures and the page as one MLflow run."""
    layout = Layout(experiment.output)
    key = digest({"models": {name: str(path) for name, path in models.items()}, "settings": plain(experiment.evaluate)})
    run = Run.open(experiment.tracking, layout, "evaluate", key=key, params=plain(experiment.evaluate))
    for row in scores:
        prefix = f"{row['variant'].replace(' ', '_')}/{row['set']}"
        run.log_metrics({f"{prefix}/{name}": value for name, value in row.items() if isinstance(value, float)}, step=0)
    write_text(layout.job("evaluate") / "experiment.yaml", to_yaml(experiment))
    for file in [*files, layout.job("evaluate") / "experiment.yaml"]:
        run.log_file(file)
    run.close()


if __name__ == "__main__":
    main("evaluate", run)
