"""Draw many prompts: a file of prompts in, a folder of images out, by Ray Data actors that each hold the model.

    kosmosg run generate source=prompts.jsonl dest=images generate.n=4

A line of the file is {"text": "<i> and <i> at sea", "images": ["cat.png", "ball.png"]}, optionally with "id", "seed"
and "negative"; image paths are relative to the file. Without `source` the one prompt `generate.prompt` is drawn.

Leaves <dest>/images/ID-1.png ..., results.jsonl (a line for each prompt: files, seeds, or why it was refused) and
sheet.png. Started again, it draws only what is missing. A prompt that cannot be drawn never stops the others.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.experiment import Experiment, GenerateConfig, main
from kosmosg.errors import ConfigError, DataError, KosmosGError
from kosmosg.prompt import Prompt
from kosmosg_platform.cluster.session import connect
from kosmosg_platform.config import digest
from kosmosg_platform.console import echo, quiet_ray_data
from kosmosg_platform.run_paths import RunPaths, choose_model
from kosmosg_platform.storage import write_text

SHEET_ROWS = 24
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
        """Digest of everything that was asked, the content of the images included."""
        files = [path for path in map(Path, self.images) if path.is_file()]
        return digest(
            {"task": asdict(self), "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]}
        )


def run(experiment: Experiment) -> Path:
    """Draw what is missing; gives the folder. Raises ConfigError, DataError for what concerns all prompts."""
    settings = experiment.generate
    layout = RunPaths(experiment.output)
    model = choose_model(experiment.output, experiment.decoder, settings.model).folder
    tasks = read_tasks(experiment)[: experiment.limit]
    dest = (experiment.dest or layout.job("generate") / Path(experiment.source or "prompt").stem).absolute()
    (dest / "images").mkdir(parents=True, exist_ok=True)
    key = digest({"model": str(model), "decoder": experiment.decoder, "settings": _shape(settings)})
    known = {row["id"]: row for row in read_results(dest) if row["key"] == key and _complete(dest, row)}
    rows = {task.id: known[task.id] for task in tasks if task.id in known and known[task.id]["task"] == task.key}
    missing = [task for task in tasks if task.id not in rows]
    echo(f"generate: {len(missing)} of {len(tasks)} prompts to draw with {model}")
    began = time.perf_counter()
    if missing:
        with connect(experiment):
            for row in draw(missing, model, experiment, dest):
                rows[row["id"]] = row | {"key": key}
                write_results(dest, [rows[task.id] for task in tasks if task.id in rows])
                echo(f"generate: {row['id']}: {row['error'] or ' '.join(row['files'])}")
    finish(dest, tasks, rows, time.perf_counter() - began, sum(len(rows[task.id]["files"]) for task in missing))
    return dest


def read_tasks(experiment: Experiment) -> list[PromptTask]:
    """The prompts of `source`, or the one of `generate.prompt`. Raises ConfigError, DataError."""
    settings = experiment.generate
    if experiment.source is None:
        if not settings.prompt:
            raise ConfigError("source: give a file of prompts (.jsonl), or one prompt by generate.prompt=...")
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


def _read(text: str) -> PromptTask:
    values = json.loads(text)
    return PromptTask(**values | {"images": tuple(values["images"])})


class PromptGenerator:
    """A Ray Data actor: holds the model and draws batches of prompts."""

    def __init__(self, model: str, decoder: str, settings: GenerateConfig, dest: str) -> None:
        import torch

        from kosmosg import KosmosGPipeline

        own = (Path(model) / "model_index.json").is_file()  # a pipeline folder has a decoder of its own
        self.pipeline = KosmosGPipeline.from_pretrained(model, decoder=None if own else decoder)
        self.pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pipeline.set_progress_bar_config(disable=True)
        self.settings = settings
        self.dest = Path(dest)

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Rows of `task` (JSON) to rows of `result` (JSON); the images are written on the way."""
        tasks = [_read(text) for text in batch["task"]]
        results = {}
        ready: list[tuple[PromptTask, Prompt]] = []
        for task in tasks:
            try:
                ready.append((task, task.prompt))
            except KosmosGError as error:
                results[task.id] = self._result(task, [], str(error))
        results |= self._draw(ready)
        return {"result": [json.dumps(results[task.id]) for task in tasks]}

    def _draw(self, ready: Sequence[tuple[PromptTask, Prompt]]) -> dict[str, dict[str, Any]]:
        if not ready:
            return {}
        try:
            pictures = self._pictures(ready)
        except KosmosGError as error:
            # One of them, such as a prompt that is too long, spoils the batch: alone it spoils only itself.
            if len(ready) == 1:
                return {ready[0][0].id: self._result(ready[0][0], [], str(error))}
            return {name: result for one in ready for name, result in self._draw([one]).items()}
        results = {}
        for k, (task, _) in enumerate(ready):
            files = []
            for i, picture in enumerate(pictures[k * self.settings.n : (k + 1) * self.settings.n], start=1):
                files.append(f"images/{task.id}-{i}.png")
                picture.save(self.dest / files[-1])
            results[task.id] = self._result(task, files, None)
        return results

    def _pictures(self, ready: Sequence[tuple[PromptTask, Prompt]]) -> list[Any]:
        import torch

        n = self.settings.n
        drawn: Any = self.pipeline(
            [prompt for _, prompt in ready],
            negative_prompt=[task.negative or "" for task, _ in ready],
            num_images_per_prompt=n,
            num_inference_steps=self.settings.steps,
            guidance_scale=self.settings.guidance,
            # An image's noise is its own, so it is the same in any batch.
            generator=[torch.Generator().manual_seed(task.seed + i) for task, _ in ready for i in range(n)],
        )
        return list(drawn.images)

    def _result(self, task: PromptTask, files: list[str], error: str | None) -> dict[str, Any]:
        seeds = [task.seed + i for i in range(len(files))]
        return asdict(task) | {"task": task.key, "files": files, "seeds": seeds, "error": error}


def draw(tasks: Sequence[PromptTask], model: Path, experiment: Experiment, dest: Path) -> Iterator[dict[str, Any]]:
    """Results as they come; the order is that of finishing."""
    import ray

    settings, scale = experiment.generate, experiment.scale
    actors = min(scale.workers, -(-len(tasks) // settings.batch))
    rows = ray.data.from_items([{"task": json.dumps(asdict(task))} for task in tasks], override_num_blocks=actors)
    drawn = rows.map_batches(
        PromptGenerator,
        fn_constructor_args=(str(model), experiment.decoder, settings, str(dest)),
        batch_size=settings.batch,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=scale.cpus_per_worker,
        num_gpus=1 if scale.use_gpu else 0,
    )
    with quiet_ray_data():
        for row in drawn.iter_rows():
            yield json.loads(row["result"])


def finish(
    dest: Path, tasks: Sequence[PromptTask], rows: Mapping[str, dict[str, Any]], seconds: float, fresh: int
) -> None:
    """The contact sheet and the closing lines."""
    from PIL import Image

    from kosmosg.eval.result_sheet import SheetRow, result_sheet

    ordered = [(task, rows[task.id]) for task in tasks]
    drawn = [(task, row) for task, row in ordered if not row["error"]]
    if drawn:
        shown = [
            SheetRow(task.prompt, [Image.open(dest / name).convert("RGB") for name in row["files"]])
            for task, row in drawn[:SHEET_ROWS]
        ]
        result_sheet(shown, [str(i + 1) for i in range(len(shown[0].pictures))]).save(dest / "sheet.png")
    refused = [row for _, row in ordered if row["error"]]
    count = sum(len(row["files"]) for _, row in drawn)
    rate = f", {fresh / seconds:.2f} a second" if fresh else ""
    print(f"{count} images of {len(drawn)} prompts, {fresh} drawn now{rate}, {len(refused)} refused: {dest}")
    for row in refused:
        print(f"  {row['id']}: {row['error']}")


def read_results(dest: Path) -> list[dict[str, Any]]:
    """What an earlier run left; nothing when it left nothing."""
    path = dest / "results.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_results(dest: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The file appears whole or not at all."""
    write_text(dest / "results.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _complete(dest: Path, row: Mapping[str, Any]) -> bool:
    return bool(row["files"]) and all((dest / name).is_file() for name in row["files"])


def _shape(settings: GenerateConfig) -> dict[str, Any]:
    """The settings that change images; how many are drawn at once does not."""
    return settings.model_dump(mode="json", include={"n", "steps", "guidance"})


if __name__ == "__main__":
    main("generate", run)
