"""Train the frozen decoder of the toy world from scratch: VAE, CLIP and recogniser in parallel, then the U-Net.

    kosmosg run toyworld toyworld                                 # 45 minutes on two free cores
    kosmosg run toyworld toyworld dest=kosmosg/assets/toyworld    # replaces the decoder that ships with the package
    kosmosg run toyworld tiny toyworld_build.effort=0.01          # minutes; only checks that everything runs

Writes a folder in the diffusers layout (default <output>/toyworld/toyworld) with a model card and scores.json; use it
with decoder=FOLDER. It can be interrupted at any time: the same command resumes. It reports missed thresholds: stage 3
is not worth starting until shape and pattern reach 0.9 and background 0.95 with complete descriptions.
"""

import json
from pathlib import Path
from typing import Any

from jobs.experiment import Experiment, main
from kosmosg.checkpoint.publish import check_replaceable
from kosmosg.toyworld.acceptance import Scores, shortfalls
from kosmosg.toyworld.build import DECODER, FITS, INDEPENDENT, assemble, scaled, train_part
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import digest, plain
from kosmosg_platform.console import echo
from kosmosg_platform.progress import Progress
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.tracking import Run

_REPORT_SECONDS = 2.0


def run(experiment: Experiment) -> Path:
    """Train the parts that are not trained yet and assemble them; returns the folder of the decoder.

    Raises CheckpointError if the destination contains anything but an earlier decoder of the toy world.
    """
    settings = experiment.toyworld_build
    work = RunPaths(experiment.output).job("toyworld")
    destination = experiment.dest or work / "toyworld"
    check_replaceable(destination, DECODER)  # now, not after an hour of training
    with connect(experiment):
        train(INDEPENDENT, work, experiment)
        train(("unet",), work, experiment)
    scores = assemble(work, destination, settings.scenes, report=echo)
    track(experiment, work, destination, scores)
    for line in shortfalls(scores):
        echo(f"toyworld: {line}")
    print(destination, flush=True)
    return destination


def train(parts: tuple[str, ...], work: Path, experiment: Experiment) -> None:
    """Train parts as Ray tasks of one core each and print their progress."""
    import ray

    settings = experiment.toyworld_build
    steps = {name: scaled(name, settings.effort, settings.seed).steps for name in parts}
    task = ray.remote(num_cpus=1)(_train_alone)
    waiting = [task.remote(name, work, settings.effort, settings.seed) for name in parts]
    with Progress(f"toyworld: {', '.join(parts)}", sum(steps.values()), "steps", running=False) as shown:
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_REPORT_SECONDS)
            ray.get(done)  # a part that failed ends the job here, with its own traceback
            last = {name: json.loads(lines[-1]) for name in parts if (lines := _lines(work, name))}
            taken = sum(min(int(line["step"]), steps[name]) for name, line in last.items())
            shown.update(taken if waiting else sum(steps.values()), "; ".join(map(_figures, last, last.values())))


def track(experiment: Experiment, work: Path, destination: Path, scores: Scores) -> None:
    """Curves of every part, scores and the model card as one MLflow run."""
    settings = plain(experiment.toyworld_build)
    run = Run.open(
        experiment.tracking,
        RunPaths(experiment.output),
        "toyworld",
        work,
        digest({"settings": settings}),
        params=settings,
    )
    logged = run.logged()
    for name in FITS:
        for line in map(json.loads, _lines(work, name)):
            figures = {f"{name}/{key}": value for key, value in line.items() if key != "step"}
            run.log_metrics(logged.new(figures, line["step"]), line["step"])
    for row, values in scores.items():
        run.log_metrics(logged.new({f"acceptance/{row}/{key}": value for key, value in values.items()}, 0))
    for file in ("README.md", "scores.json"):
        run.log_file(destination / file)
    run.close()


def _train_alone(name: str, work: Path, effort: float, seed: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)  # parts share the machine; more threads than cores would slow all of them
    return train_part(name, work, scaled(name, effort, seed))


def _lines(work: Path, name: str) -> list[str]:
    log = work / name / "log.jsonl"
    return log.read_text().splitlines() if log.is_file() else []


def _figures(name: str, line: dict[str, float]) -> str:
    rest = {key: value for key, value in line.items() if key not in ("step", "seconds", "lr")}
    return f"{name} at {line['step']:.0f}: {' '.join(f'{key} {value:.3f}' for key, value in rest.items())}"


if __name__ == "__main__":
    main("toyworld", run)
