"""The whole pipeline end to end on this machine: dataset, three stages, evaluation, endpoint, and a report.

Builds a composition dataset of the toy world with Ray Data, trains `pretrain`, `align` and `instruct` with Ray Train
and DeepSpeed, tracks them in MLflow, evaluates the model before and after the last stage and the shipped model on
held-out subjects, deploys the endpoint with Ray Serve and calls it over HTTP with an interleaved prompt. Writes
report.html and sheet.png to <output>/demo.

It can be interrupted at any time: the same command resumes.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from jobs import align, build_dataset, evaluate, instruct, pretrain
from jobs.experiment import Experiment, load, main
from kosmosg.data.contact_sheet import SheetRow, result_sheet
from kosmosg.eval.benchmarks.base import open_benchmark
from kosmosg.eval.protocol import find_protocol
from kosmosg.prompt import Prompt
from kosmosg_platform.cluster.resources import require_resources
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import digest, plain, to_yaml
from kosmosg_platform.console import echo
from kosmosg_platform.inference.client import serving
from kosmosg_platform.reports.demo import demo_report
from kosmosg_platform.run_paths import STAGES, RunPaths
from kosmosg_platform.storage import read_json, write_json, write_text
from kosmosg_platform.tracking import Run


@dataclass
class DemoRun:
    """State shared by the steps of one demo: its settings, where it writes, and the result of each step."""

    experiment: Experiment
    folder: Path
    tracking: str
    """The store that all runs of the demo are written to."""
    run: Run
    key: str
    """Of its run."""
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def layout(self) -> RunPaths:
        """The output tree of the demo's own jobs."""
        return RunPaths(self.folder)

    def job(self, name: str, *settings: str) -> Experiment:
        """The experiment of one of the demo's jobs: same preset, writing under the demo's folder."""
        shared = (
            f"output={self.folder}",
            f"tracking.uri={self.tracking}",
            f"tracking.experiment={json.dumps(self.experiment.tracking.experiment)}",
            f"tracking.parent_run={json.dumps(self.run.id or self.key)}",
        )
        return load(name, self.experiment.demo.preset, [*shared, *self.experiment.demo.settings, *settings])


Step = Callable[[DemoRun], dict[str, Any]]

SHIPPED = "toyworld:instruct"
"""The result of longer training, shown beside the demo's model."""


def run(experiment: Experiment) -> Path:
    """Run every step; returns the path of the report."""
    for stage in STAGES:
        scale = load(stage, experiment.demo.preset, experiment.demo.settings).scale
        require_resources(scale.training_workers(), address=scale.address)
    layout = RunPaths(experiment.output)
    folder = layout.job("demo")
    echo(f"demo: writing everything to {folder}")
    key = digest({"demo": str(folder)})
    name = f"demo {experiment.demo.preset} ({key[:4]})"
    params = {"demo": plain(experiment.demo), **sizes(experiment)}
    mlflow_run = Run.open(experiment.tracking, layout, "demo", folder, key, name, {"job": "demo"}, params)
    write_text(folder / "experiment.yaml", to_yaml(experiment))
    mlflow_run.log_file(folder / "experiment.yaml")
    began = time.perf_counter()
    with mlflow_run.closing():
        demo = DemoRun(experiment, folder, mlflow_run.uri, mlflow_run, key)
        # Room for the stage with the most workers.
        largest = max(map(demo.job, STAGES), key=lambda job: job.scale.workers * job.scale.cpus_per_worker)
        with connect(largest):
            for step, action in STEPS.items():
                run_step(demo, step, action)
        # The endpoint starts a cluster of its own, as a deployment would; two at once are too much for a laptop.
        run_step(demo, "endpoint", ask_endpoint)
        report = demo_report(folder, demo.found, demo.tracking).write(folder / "report.html")
        sheet = Path(shutil.copyfile(folder / "evaluate" / "sheet.png", folder / "sheet.png"))
        logged = mlflow_run.logged()
        for step, found in demo.found.items():
            mlflow_run.log_metrics(logged.new(figures(step, found), 0))
        for file in (report, sheet):
            mlflow_run.log_file(file)
    echo(f"demo: done in {(time.perf_counter() - began) / 60:.1f} min")
    print(f"report: {report}\nsheet:  {sheet}")
    return report


def sizes(experiment: Experiment) -> dict[str, Any]:
    """How long the demo trains each stage, for its page in MLflow."""
    trains = {stage: load(stage, experiment.demo.preset, experiment.demo.settings).train for stage in STAGES}
    return {
        stage: {"steps": train.steps, "global_batch": train.global_batch, "lr": train.lr}
        for stage, train in trains.items()
    }


def figures(step: str, found: Mapping[str, Any]) -> dict[str, float]:
    """What a step found, as metrics of the demo's run: seconds, rows, last metrics, scores."""
    numbers: dict[str, Any] = {name: value for name, value in found.items() if name in ("seconds", "request_seconds")}
    numbers |= {f"rows/{kind}": rows for kind, rows in found.get("rows", {}).items()}
    numbers |= found.get("metrics", {})
    for row in found.get("scores", ()):
        prefix = f"{row['variant'].replace(' ', '_')}/{row['set']}"
        numbers |= {f"{prefix}/{name}": value for name, value in row.items() if isinstance(value, float)}
    return {f"{step}/{name}": float(value) for name, value in numbers.items()}


def run_step(demo: DemoRun, name: str, step: Step) -> None:
    """Run one step, or reuse its earlier result; it runs again if settings of the demo or of its jobs changed."""
    note = demo.folder / "steps" / f"{name}.json"
    settings = demo.experiment.demo
    jobs = [plain(load(job, settings.preset, settings.settings)) for job in ("build_dataset", *STAGES, "evaluate")]
    key = digest({"endpoint": settings.endpoint, "jobs": jobs, "shipped": SHIPPED})
    known = read_json(note) if note.is_file() else {}
    if known.get("key") == key:
        demo.found[name] = known["found"]
        echo(f"demo: {name} was done before (it took {known['found']['seconds']:.0f} s)")
        return
    echo(f"demo: {name}")
    began = time.perf_counter()
    found = step(demo)
    found.setdefault("seconds", round(time.perf_counter() - began, 1))
    write_json(note, {"key": key, "found": found})
    demo.found[name] = found
    echo(f"demo: {name} took {found['seconds']:.0f} s")


def build(demo: DemoRun) -> dict[str, Any]:
    """Build the datasets; an interrupted build resumes."""
    results = build_dataset.run(demo.job("build_dataset"))
    return {"rows": {result.kind: result.rows for result in results}}


def train(job: ModuleType, name: str) -> Step:
    """A step that trains one stage from its parent's export, or resumes it from its last checkpoint."""

    def step(demo: DemoRun) -> dict[str, Any]:
        result = job.run(demo.job(name))
        trained = demo.job(name).train
        samples = trained.steps * trained.global_batch
        found = {"export": str(result.export), "run_id": result.run_id, "samples": samples}
        found["metrics"] = dict(result.metrics)
        # A stage that was trained before is reported with the time it took then.
        return found | ({"seconds": round(result.seconds, 1)} if result.skipped else {})

    return step


def judge(demo: DemoRun) -> dict[str, Any]:
    """The same prompts before and after the last stage, and with the shipped model."""
    models = {
        "shipped model": SHIPPED,
        "before instruct": demo.found["align"]["export"],
        "after instruct": demo.found["instruct"]["export"],  # last, because this one also gets text-only prompts
    }
    named = yaml.safe_dump(models, default_flow_style=True, sort_keys=False)
    folder = evaluate.run(demo.job("evaluate", f"evaluate.models={named}"))
    return {"scores": read_json(folder / "scores.json")}


def ask_endpoint(demo: DemoRun) -> dict[str, Any]:
    """Deploy, call over HTTP with an interleaved prompt, shut down."""
    folder = demo.folder / "endpoint"
    settings = demo.job("evaluate").evaluate
    benchmark = open_benchmark(find_protocol(settings.protocol), evaluate.benchmark_settings(settings))
    case = next(case for case in benchmark.cases if len(case.images) == 2)
    prompt = Prompt(case.text, images=case.images)
    words = (f"model={demo.found['instruct']['export']}", f"decoder={demo.job('instruct').decoder}")
    with serving([demo.experiment.demo.endpoint, *words], folder / "server.log") as client:
        began = time.perf_counter()
        answer = client.generate(prompt, seed=7)
        seconds = time.perf_counter() - began
    result_sheet([SheetRow(prompt, answer.images)], ["answer"]).save(folder / "sheet.png")
    return {
        "route": "/v1/generate",
        "prompt": prompt.text,
        "images": len(prompt.images),
        "request_seconds": round(seconds, 2),
        "seed": answer.seeds[0],
        "sheet": "endpoint/sheet.png",
    }


STEPS: Mapping[str, Step] = {
    "build_dataset": build,
    **{name: train(job, name) for name, job in zip(STAGES, (pretrain, align, instruct), strict=True)},
    "evaluate": judge,
}


if __name__ == "__main__":
    main("demo", run)
