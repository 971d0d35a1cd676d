"""Judge models: the same prompts for all, pictures by Ray actors, scores, a contact sheet and a page.

    kosmosg run evaluate world
    kosmosg run evaluate gpu evaluate.protocol=dreambench-kosmosg evaluate.data=dreambooth/dataset

A protocol says what exactly is measured (kosmosg/eval/protocol.py); its id stands beside every number. `world` reads
each picture with the small world's own judge at the places where the prompt expects its entities, all of them subjects
that no training ever saw. The others draw for DreamBench or COCO captions and compare with real pictures.

Leaves scores.json, sheet.png and report.html in <output>/evaluate (in a folder of the protocol's name, but for
`world`), and the same in MLflow. What was drawn or looked at before with the same settings is not done again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.config import EvaluateConfig, Experiment, main
from kosmosg.errors import ConfigError
from kosmosg.eval.features import weights_sha256
from kosmosg.eval.protocol import RECOGNISER, Protocol, find_protocol
from kosmosg.eval.sheet import SheetRow, result_sheet
from kosmosg.eval.world import Style, WorldPrompt, world_prompts
from kosmosg.eval.world import score as world_score
from kosmosg.foundation import export_folder, world_folder
from kosmosg.schedulers import SCHEDULERS
from kosmosg_platform.cluster import connect
from kosmosg_platform.config import digest, plain, to_yaml
from kosmosg_platform.evaluation.benchmark import Bench, run_benchmark, sampling_of
from kosmosg_platform.evaluation.painting import Order, model_weights, open_picture, paint
from kosmosg_platform.evaluation.scoreboard import benchmark_report, protocol_table, summary
from kosmosg_platform.journey import score_table
from kosmosg_platform.log import say
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
    protocol = settle(settings)
    models = {name: export_folder(path) for name, path in settings.models.items()}
    models = models or {"model": layout.newest_export(experiment.decoder)}
    for model in models.values():
        model_weights(model)  # a wrong folder should be told before a cluster starts
    if protocol.benchmark == "world":
        return run_world(experiment, protocol, models, layout.job("evaluate"))
    if settings.data is None:
        raise ConfigError(f"evaluate.data: {protocol.name} compares with real pictures; give the folder that has them")
    bench = Bench(
        protocol=protocol,
        models=models,
        decoder=experiment.decoder,
        data=settings.data.absolute(),
        weights=settings.weights,
        subjects=settings.subjects,
        folder=layout.job("evaluate"),
        rows=settings.rows,
    )
    found = run_benchmark(bench, experiment)
    folder = layout.job("evaluate") / protocol.name
    folder.mkdir(parents=True, exist_ok=True)
    found.sheet.save(folder / "sheet.png")
    benchmark_report(found).write(folder / "report.html")
    publish(experiment, folder, found.protocol, models, found.rows)
    for row in found.rows:
        if row["set"] == "all":
            say(f"evaluate: {row['variant']}, {found.protocol.label}: {summary(row)}")
    return folder


def settle(settings: EvaluateConfig) -> Protocol:
    """The protocol with what the settings change in it. Raises ConfigError."""
    protocol = find_protocol(settings.protocol)
    changed = protocol.changed(
        solver=settings.solver,
        steps=settings.steps,
        guidance=settings.guidance,
        seed=settings.seed,
        batch=settings.batch,
    )
    if changed.solver != "decoder" and changed.solver not in SCHEDULERS:
        raise ConfigError(f"evaluate.solver: there is no {changed.solver!r}; choose one of {', '.join(SCHEDULERS)}")
    if protocol.benchmark == "world":
        return changed.changed(count=settings.cases, prompts=settings.style)
    unknown = sorted(set(settings.weights) - set(protocol.features))
    if unknown:
        known = ", ".join(protocol.features)
        raise ConfigError(f"evaluate.weights.{unknown[0]}: {protocol.name} has no such network; it uses {known}")
    return changed.changed(size=settings.size, pictures=settings.pictures, count=settings.prompts)


def run_world(experiment: Experiment, protocol: Protocol, models: Mapping[str, Path], folder: Path) -> Path:
    """Judge in the small world; gives the folder of the results."""
    settings = experiment.evaluate
    cases = ask(settings, settings.style)
    asked = hashlib.sha256("".join(case.prompt.sha256() for _, case in cases).encode()).hexdigest()[:16]
    protocol = protocol.measured(asked, {RECOGNISER: weights_sha256(str(world_folder() / "recogniser"))})
    drawn: dict[str, list[Image.Image]] = {}
    with connect(experiment):
        for variant, export in models.items():
            drawn[variant] = draw(variant, export, cases, experiment, folder)
        scores = [row for variant, pictures in drawn.items() for row in score(variant, cases, pictures)]
        if settings.text_only:
            worded = ask(settings, "text")
            pictures = draw(TEXT_ONLY, list(models.values())[-1], worded, experiment, folder)
            scores += score(TEXT_ONLY, worded, pictures)
    scores = [{**row, "protocol": protocol.protocol_id} for row in scores]
    sheet = result_sheet(*sheet_rows(cases, drawn, settings.rows))
    sheet.save(folder / "sheet.png")
    Report(
        "Evaluation in the small world",
        f"{settings.cases} prompts of each kind with subjects that no training ever saw, judged by the recogniser.",
        {"protocol": protocol.label},
        sections=[
            Section("Scores", table=score_table(scores)),
            Section(
                "Pictures", figures=[Figure.of(sheet, "reference images | prompt | results; rows are not selected")]
            ),
            Section("Protocol", table=protocol_table(protocol)),
        ],
    ).write(folder / "report.html")
    publish(experiment, folder, protocol, models, scores)
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
    sampling = sampling_of(settle(experiment.evaluate))
    orders = [Order.of(case.prompt) for _, case in cases]
    paths = paint(variant, export, experiment.decoder, orders, sampling, experiment.scale, folder / "pictures")
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


def publish(
    experiment: Experiment,
    folder: Path,
    protocol: Protocol,
    models: Mapping[str, Path],
    scores: Sequence[Mapping[str, Any]],
) -> None:
    """Figures and protocol as files beside the page, and all of them as one MLflow run."""
    write_json(folder / "scores.json", list(scores))
    about = {"id": protocol.protocol_id, "name": protocol.name, "deviations": protocol.deviations()}
    write_json(folder / "protocol.json", {**about, **protocol.facts()})
    write_text(folder / "experiment.yaml", to_yaml(experiment))
    judged = {name: str(path) for name, path in models.items()}
    key = digest({"models": judged, "settings": plain(experiment.evaluate), "protocol": protocol.protocol_id})
    tags = {"protocol": protocol.protocol_id, "protocol.name": protocol.name}
    layout = Layout(experiment.output)
    run = Run.open(experiment.tracking, layout, "evaluate", key=key, tags=tags, params=plain(experiment.evaluate))
    for row in scores:
        prefix = f"{row['variant'].replace(' ', '_')}/{row['set']}"
        run.log_metrics({f"{prefix}/{name}": value for name, value in row.items() if isinstance(value, float)}, step=0)
    for name in ("report.html", "sheet.png", "scores.json", "protocol.json", "experiment.yaml"):
        run.log_file(folder / name)
    run.close()


if __name__ == "__main__":
    main("evaluate", run)
