"""Generate images for many prompts: a file of prompts in, a folder of images out, using Ray actors.

    kosmosg run generate source=prompts.jsonl dest=images generate.n=4

A line of the file is {"text": "<i> and <i> at sea", "images": ["cat.png", "ball.png"]}, optionally with "id", "seed"
and "negative"; image paths are relative to the file. Without `source`, the single prompt `generate.prompt` is used.

Writes <dest>/images/ID-1.png ..., results.jsonl (one line per prompt: files and seeds, or why it was rejected) and
sheet.png. Run again, it generates only what is missing. An invalid prompt does not affect the others.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.experiment import Experiment, GenerateConfig, main
from kosmosg.errors import ConfigError, DataError
from kosmosg.prompt import Prompt
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import digest
from kosmosg_platform.console import echo, plural
from kosmosg_platform.inference.generation import generate_images, image_key
from kosmosg_platform.inference.sampling import GenerationRequest, SamplingParams
from kosmosg_platform.owned_folder import claim_files
from kosmosg_platform.run_paths import RunPaths, choose_model
from kosmosg_platform.storage import write_text

SHEET_ROWS = 24
STORE = ".generating"  # under dest, while images are made
FIELDS = {"id", "text", "images", "seed", "negative"}


@dataclass(frozen=True)
class PromptTask:
    """One prompt of the file."""

    id: str
    text: str
    images: tuple[str, ...]  # absolute paths
    seed: int
    negative: str | None

    @property
    def prompt(self) -> Prompt:
        """Raises PromptError, ImageError."""
        return Prompt(self.text, images=[Path(path) for path in self.images])

    @property
    def key(self) -> str:
        """Digest of the whole request, including the content of the images."""
        files = [path for path in map(Path, self.images) if path.is_file()]
        return digest(
            {"task": asdict(self), "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]}
        )


def run(experiment: Experiment) -> Path:
    """Generate what is missing; returns the folder. Raises ConfigError, DataError for general errors."""
    settings = experiment.generate
    layout = RunPaths(experiment.output)
    model = choose_model(experiment.output, experiment.decoder, settings.model).folder
    tasks = read_tasks(experiment)[: experiment.limit]
    dest = (experiment.dest or layout.job("generate") / Path(experiment.source or "prompt").stem).absolute()
    claim_files(dest, "generate", ("images", "results.jsonl", "sheet.png", STORE))
    (dest / "images").mkdir(exist_ok=True)
    # Existing images are reused as long as the contents of model and decoder and the settings are unchanged.
    sampling = SamplingParams(settings.steps, settings.guidance, images_per_prompt=settings.n)
    key = image_key(model, experiment.decoder, [], sampling)
    known = {row["id"]: row for row in read_results(dest) if row["key"] == key and _complete(dest, row)}
    rows = {task.id: known[task.id] for task in tasks if task.id in known and known[task.id]["task"] == task.key}
    missing = [task for task in tasks if task.id not in rows]
    echo(f"generate: {len(missing)} of {plural(len(tasks), 'prompt')} to generate with {model}")
    began = time.perf_counter()
    if missing:
        with connect(experiment):
            for row in generate_tasks(missing, model, experiment, dest):
                rows[row["id"]] = row | {"key": key}
        write_results(dest, [rows[task.id] for task in tasks])
        shutil.rmtree(dest / STORE, ignore_errors=True)  # its images have been moved to their final place
    finish(dest, tasks, rows, time.perf_counter() - began, sum(len(rows[task.id]["files"]) for task in missing))
    return dest


def read_tasks(experiment: Experiment) -> list[PromptTask]:
    """The prompts of `source`, or the one of `generate.prompt`. Raises ConfigError, DataError."""
    settings = experiment.generate
    if experiment.source is None:
        if not settings.prompt:
            raise ConfigError("source: give a file of prompts (.jsonl), or a single prompt with generate.prompt=...")
        images = tuple(str(path.absolute()) for path in settings.images)
        return [PromptTask("prompt", settings.prompt, images, settings.seed, settings.negative)]
    path = Path(experiment.source)
    if not path.is_file():
        raise ConfigError(f"source: there is no file {path}; give a .jsonl with one prompt on each line")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    tasks = [_task(number, line, path, settings) for number, line in enumerate(lines)]
    if not tasks:
        raise DataError(f"{path} holds no prompts; write one JSON object on each line")
    seen: dict[str, int] = {}
    for number, task in enumerate(tasks, start=1):
        if task.id in seen:
            raise DataError(f"{path} has the id {task.id!r} in lines {seen[task.id]} and {number}; give each its own")
        seen[task.id] = number
    return tasks


def _task(number: int, line: str, path: Path, settings: GenerateConfig) -> PromptTask:
    where = f"{path}, line {number + 1}"
    try:
        given = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("text"), str) or set(given) - FIELDS:
        raise DataError(f'{where} is not {{"text": "...", "images": [...]}}; fields are {", ".join(sorted(FIELDS))}')
    identifier = str(given.get("id", f"{number:05d}"))
    if not re.fullmatch(r"[\w.-]{1,100}", identifier):
        raise DataError(f"{where}: the id {identifier!r} names files, so it is made of letters, digits, dot, - and _")
    images = given.get("images", [])
    seed = given.get("seed", settings.seed + number * settings.n)
    if not isinstance(images, list) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"{where}: images is a list of paths and seed a number from 0 on")
    paths = tuple(str((path.parent / str(image)).absolute()) for image in images)
    return PromptTask(identifier, given["text"], paths, seed, given.get("negative", settings.negative))


def generate_tasks(
    tasks: Sequence[PromptTask], model: Path, experiment: Experiment, dest: Path
) -> Iterator[dict[str, Any]]:
    """The results of these prompts, in their order; images are written to `dest`. Ray must be up."""
    settings = experiment.generate
    lost = {task.id: path for task in tasks for path in task.images if not Path(path).is_file()}
    wanted = [task for task in tasks if task.id not in lost]
    generated = generate_images(
        "generate",
        model,
        experiment.decoder,
        [GenerationRequest(task.text, tuple(map(Path, task.images)), task.negative, task.seed) for task in wanted],
        SamplingParams(settings.steps, settings.guidance, images_per_prompt=settings.n, batch=settings.batch),
        experiment.scale,
        dest / STORE,
        tolerate=True,
    )
    number = {task.id: place for place, task in enumerate(wanted)}
    for task in tasks:
        error = f"there is no file {lost[task.id]}" if task.id in lost else generated.refused.get(number[task.id])
        files = [] if error else [f"images/{task.id}-{i}.png" for i in range(1, settings.n + 1)]
        for i, name in enumerate(files):
            generated.paths[number[task.id] * settings.n + i].replace(dest / name)
        seeds = [task.seed + i for i in range(len(files))]
        yield asdict(task) | {"task": task.key, "files": files, "seeds": seeds, "error": error}


def finish(
    dest: Path, tasks: Sequence[PromptTask], rows: Mapping[str, dict[str, Any]], seconds: float, fresh: int
) -> None:
    """The contact sheet and the closing lines."""
    from PIL import Image

    from kosmosg.data.contact_sheet import SheetRow, result_sheet

    ordered = [(task, rows[task.id]) for task in tasks]
    done = [(task, row) for task, row in ordered if not row["error"]]
    if done:
        shown = [
            SheetRow(task.prompt, [Image.open(dest / name).convert("RGB") for name in row["files"]])
            for task, row in done[:SHEET_ROWS]
        ]
        result_sheet(shown, [str(i + 1) for i in range(len(shown[0].images))]).save(dest / "sheet.png")
    refused = [row for _, row in ordered if row["error"]]
    count = sum(len(row["files"]) for _, row in done)
    rate = f" at {fresh / seconds:.2f} images/s" if fresh else ""
    images, prompts = plural(count, "image"), plural(len(done), "prompt")
    print(f"{images} for {prompts}, {fresh} generated now{rate}, {len(refused)} rejected: {dest}")
    for row in refused:
        print(f"  {row['id']}: {row['error']}")


def read_results(dest: Path) -> list[dict[str, Any]]:
    """The results of an earlier run; empty if there are none."""
    path = dest / "results.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_results(dest: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the file atomically."""
    write_text(dest / "results.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _complete(dest: Path, row: Mapping[str, Any]) -> bool:
    return bool(row["files"]) and all((dest / name).is_file() for name in row["files"])


if __name__ == "__main__":
    main("generate", run)
