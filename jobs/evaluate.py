"""Evaluate models on the same prompts: generate images with Ray actors, then compute scores and write a report.

    kosmosg run evaluate toyworld
    kosmosg run evaluate gpu evaluate.protocol=dreambench-kosmosg evaluate.data=dreambooth/dataset

A protocol says exactly what is measured (kosmosg/eval/protocol.py); its id is reported with every number. `toyworld`
generates held-out subjects and checks each image with the toy world's recogniser at the positions where the prompt
expects its entities. The others generate for DreamBench or COCO captions and compare with real images.

Writes scores.json, sheet.png and report.html to <output>/evaluate (except for `toyworld`, to a subfolder named after
the protocol), and logs them to MLflow. Images and features from earlier runs with the same settings are reused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.experiment import EvaluateConfig, Experiment, main
from kosmosg.checkpoint.digest import model_digest
from kosmosg.diffusion.schedulers import SCHEDULERS
from kosmosg.errors import ConfigError
from kosmosg.eval.benchmarks.base import BenchmarkSettings
from kosmosg.eval.protocol import Protocol, find_protocol
from kosmosg.hub import resolve_model
from kosmosg_platform.config import digest, plain, to_yaml
from kosmosg_platform.console import echo
from kosmosg_platform.evaluation.runner import Evaluation, run_benchmark
from kosmosg_platform.reports.benchmark import benchmark_report
from kosmosg_platform.run_paths import RunPaths, choose_model
from kosmosg_platform.storage import write_json, write_text
from kosmosg_platform.tracking import Run

DEFAULT_PROTOCOL = "toyworld"  # its results are in <output>/evaluate itself


def run(experiment: Experiment) -> Path:
    """Evaluate every model of `evaluate.models`; returns the folder of the results."""
    settings, layout = experiment.evaluate, RunPaths(experiment.output)
    protocol = settle(settings)
    models = {name: resolve_model(path) for name, path in settings.models.items()}
    models = models or {"model": choose_model(experiment.output, experiment.decoder).folder}
    for model in models.values():
        model_digest(model)  # report a wrong folder before a cluster starts
    evaluation = Evaluation(
        protocol=protocol,
        settings=benchmark_settings(settings),
        models=models,
        decoder=experiment.decoder,
        folder=layout.job("evaluate"),
        rows=settings.rows,
        in_words=settings.text_only,
    )
    found = run_benchmark(evaluation, experiment)
    folder = layout.job("evaluate") / ("" if protocol.name == DEFAULT_PROTOCOL else protocol.name)
    folder.mkdir(parents=True, exist_ok=True)
    found.sheet.save(folder / "sheet.png")
    benchmark_report(found).write(folder / "report.html")
    publish(experiment, folder, found.protocol, models, found.rows)
    for name, line in found.benchmark.page(found.rows).headlines.items():
        echo(f"evaluate: {name}: {line} ({found.protocol.label})")
    return folder


def benchmark_settings(settings: EvaluateConfig) -> BenchmarkSettings:
    """The settings that a benchmark gets in addition to its protocol."""
    return BenchmarkSettings(
        data=settings.data.absolute() if settings.data else None,
        subjects=settings.subjects,
        cases=settings.cases,
        style=settings.style,
        seed=settings.seed,
        weights=settings.weights,
    )


def settle(settings: EvaluateConfig) -> Protocol:
    """The protocol with the changes that the settings make. Raises ConfigError."""
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
    return changed.changed(size=settings.size, pictures=settings.pictures, count=settings.prompts)


def publish(
    experiment: Experiment,
    folder: Path,
    protocol: Protocol,
    models: Mapping[str, Path],
    scores: Sequence[Mapping[str, Any]],
) -> None:
    """Write scores and protocol as files next to the page, and log everything as one MLflow run."""
    write_json(folder / "scores.json", list(scores))
    about = {"id": protocol.protocol_id, "name": protocol.name, "deviations": protocol.deviations()}
    write_json(folder / "protocol.json", {**about, **protocol.facts()})
    write_text(folder / "experiment.yaml", to_yaml(experiment))
    judged = {name: str(path) for name, path in models.items()}
    key = digest({"models": judged, "settings": plain(experiment.evaluate), "protocol": protocol.protocol_id})
    tags = {"protocol": protocol.protocol_id, "protocol.name": protocol.name}
    layout = RunPaths(experiment.output)
    place, name = layout.job("evaluate") / "runs" / key[:12], f"evaluate {protocol.name} ({key[:4]})"
    run = Run.open(experiment.tracking, layout, "evaluate", place, key, name, tags, plain(experiment.evaluate))
    logged = run.logged()
    for row in scores:
        prefix = f"{row['variant'].replace(' ', '_')}/{row['set']}"
        figures = {f"{prefix}/{name}": value for name, value in row.items() if isinstance(value, float)}
        run.log_metrics(logged.new(figures, 0))
    for name in ("report.html", "sheet.png", "scores.json", "protocol.json", "experiment.yaml"):
        run.log_file(folder / name)
    run.close()


if __name__ == "__main__":
    main("evaluate", run)
