"""Judge models: the same prompts for all, images by Ray actors, scores, a contact sheet and a page.

    kosmosg run evaluate toyworld
    kosmosg run evaluate gpu evaluate.protocol=dreambench-kosmosg evaluate.data=dreambooth/dataset

A protocol says what exactly is measured (kosmosg/eval/protocol.py); its id stands beside every number. `toyworld` reads
each image with the toy world's own judge at the places where the prompt expects its entities, all of them subjects
that no training ever saw. The others draw for DreamBench or COCO captions and compare with real images.

Leaves scores.json, sheet.png and report.html in <output>/evaluate (in a folder of the protocol's name, but for
`toyworld`), and the same in MLflow. What was drawn or looked at before with the same settings is not done again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.experiment import EvaluateConfig, Experiment, main
from kosmosg.checkpoint.digest import model_digest
from kosmosg.diffusion.schedulers import SCHEDULERS
from kosmosg.errors import ConfigError
from kosmosg.eval.features.networks import weights_sha256
from kosmosg.eval.protocol import RECOGNISER, Protocol, find_protocol
from kosmosg.eval.result_sheet import SheetRow, result_sheet
from kosmosg.hub import resolve_model
from kosmosg.toyworld.assets import toyworld_folder
from kosmosg.toyworld.benchmark import Style, ToyworldPrompt, toyworld_prompts
from kosmosg.toyworld.benchmark import score as toyworld_score
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import digest, plain, to_yaml
from kosmosg_platform.console import echo
from kosmosg_platform.evaluation.runner import IMAGES, Bench, run_benchmark, sampling_of
from kosmosg_platform.inference.generation import GenerationRequest, generate_images, open_image
from kosmosg_platform.reports.benchmark import benchmark_report, protocol_table, summary
from kosmosg_platform.reports.demo import score_table
from kosmosg_platform.reports.page import Figure, PageSection, Report
from kosmosg_platform.run_paths import RunPaths, choose_model
from kosmosg_platform.storage import write_json, write_text
from kosmosg_platform.tracking import Run

SETS = {"one": 1, "two": 2, "three": 3}
"""Name of each set of prompts and the entities in them."""

TEXT_ONLY = "text only"

Case = tuple[str, ToyworldPrompt]
"""Name of the set, prompt and the scene it asks for."""


def run(experiment: Experiment) -> Path:
    """Judge every model of `evaluate.models`; gives the folder of the results."""
    settings, layout = experiment.evaluate, RunPaths(experiment.output)
    protocol = settle(settings)
    models = {name: resolve_model(path) for name, path in settings.models.items()}
    models = models or {"model": choose_model(experiment.output, experiment.decoder).folder}
    for model in models.values():
        model_digest(model)  # a wrong folder should be told before a cluster starts
    if protocol.benchmark == "toyworld":
        return run_toyworld(experiment, protocol, models, layout.job("evaluate"))
    if settings.data is None:
        raise ConfigError(f"evaluate.data: {protocol.name} compares with real images; give the folder that has them")
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
            echo(f"evaluate: {row['variant']}, {found.protocol.label}: {summary(row)}")
    return folder


def settle(settings: EvaluateConfig) -> Protocol:
    """The protocol with what the settings change in it. Raises ConfigError."""
    protocol = find_protocol(settings.protocol)
    changed = protocol.changed(
        solver=settings.scheduler,
        steps=settings.steps,
        guidance=settings.guidance,
        seed=settings.seed,
        batch=settings.batch,
    )
    if changed.solver != "decoder" and changed.solver not in SCHEDULERS:
        raise ConfigError(f"evaluate.scheduler: there is no {changed.solver!r}; choose one of {', '.join(SCHEDULERS)}")
    if protocol.benchmark == "toyworld":
        return changed.changed(count=settings.cases, prompts=settings.style)
    unknown = sorted(set(settings.weights) - set(protocol.features))
    if unknown:
        known = ", ".join(protocol.features)
        raise ConfigError(f"evaluate.weights.{unknown[0]}: {protocol.name} has no such network; it uses {known}")
    return changed.changed(size=settings.size, pictures=settings.pictures, count=settings.prompts)


def run_toyworld(experiment: Experiment, protocol: Protocol, models: Mapping[str, Path], folder: Path) -> Path:
    """Judge in the toy world; gives the folder of the results."""
    settings = experiment.evaluate
    cases = ask(settings, settings.style)
    asked = hashlib.sha256("".join(case.prompt.sha256() for _, case in cases).encode()).hexdigest()[:16]
    protocol = protocol.measured(asked, {RECOGNISER: weights_sha256(str(toyworld_folder() / "recogniser"))})
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
        "Evaluation in the toy world",
        f"{settings.cases} prompts of each kind with subjects that no training ever saw, judged by the recogniser.",
        {"protocol": protocol.label},
        sections=[
            PageSection("Scores", table=score_table(scores)),
            PageSection(
                "Pictures", figures=[Figure.of(sheet, "reference images | prompt | results; rows are not selected")]
            ),
            PageSection("Protocol", table=protocol_table(protocol)),
        ],
    ).write(folder / "report.html")
    publish(experiment, folder, protocol, models, scores)
    for row in scores:
        echo(
            f"evaluate: {row['variant']}, {row['set']}: shape {row['shape']:.2f}  pattern {row['pattern']:.2f}  "
            f"hue error {row['hue']:.0f}°  background {row['background']:.2f}  whole subject {row['whole']:.2f}"
        )
    return folder


def ask(settings: EvaluateConfig, style: Style) -> list[Case]:
    """The prompts of every set, in one list; a style asks for the same scenes as another."""
    return [
        (name, case)
        for name, entities in SETS.items()
        for case in toyworld_prompts(settings.cases, entities, held_out=True, seed=settings.seed, style=style)
    ]


def draw(variant: str, export: Path, cases: Sequence[Case], experiment: Experiment, folder: Path) -> list[Image.Image]:
    """One image for each case, in their order, with as many actors as there are workers."""
    sampling = sampling_of(settle(experiment.evaluate))
    requests = [GenerationRequest.of(case.prompt) for _, case in cases]
    generated = generate_images(
        f"evaluate: {variant}", export, experiment.decoder, requests, sampling, experiment.scale, folder / IMAGES
    )
    return [open_image(path) for path in generated.paths]


def score(variant: str, cases: Sequence[Case], pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """One row of figures for each set of prompts."""
    rows = []
    for name in SETS:
        chosen = [index for index, (of, _) in enumerate(cases) if of == name]
        pixels = np.stack([np.asarray(pictures[index]) for index in chosen])
        measured = toyworld_score(pixels, [cases[index][1].scene for index in chosen])
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
    layout = RunPaths(experiment.output)
    run = Run.open(experiment.tracking, layout, "evaluate", key=key, tags=tags, params=plain(experiment.evaluate))
    for row in scores:
        prefix = f"{row['variant'].replace(' ', '_')}/{row['set']}"
        run.log_metrics({f"{prefix}/{name}": value for name, value in row.items() if isinstance(value, float)}, step=0)
    for name in ("report.html", "sheet.png", "scores.json", "protocol.json", "experiment.yaml"):
        run.log_file(folder / name)
    run.close()


if __name__ == "__main__":
    main("evaluate", run)
