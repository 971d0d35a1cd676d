"""Dataset builds beside the way the original built: images per second, bytes on disk, decoding for training, memory.

    python tests/benchmarks/dataset.py                          # some minutes on two cores
    python tests/benchmarks/dataset.py --images 500 --rounds 5
    python tests/benchmarks/dataset.py --memory 2000 20000      # peak memory of builds of these sizes instead

The peer is the loop of the original's `convert_openimage`: one image at a time through every model, PNG crops with and
without background, base64 in a TSV line. Both sides use the same small random models and photos of 1024 x 768 pixels.
Builds run in one Ray process per core; start-up (Ray, loading models) is left out on both sides. Nothing here passes or
fails.
"""

import argparse
import base64
import io
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, EntitySpans, Rejection, Sample, Span
from kosmosg.data.composition import ComposeOptions, main_part, square_box, widen
from kosmosg.data.precomputed import POSTERIOR, STORED_AS, unpack
from kosmosg.data.records import record_kind
from kosmosg.data.sources.image_folder import ImageFolderReader
from kosmosg.data.templates.instruct import InstructTemplates
from kosmosg_platform.datasets.build import BuildResult, BuildSettings, build
from kosmosg_platform.datasets.dataset import RecordDataset, write_manifest, write_records
from kosmosg_platform.datasets.precomputed import RecordsWithColumn
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
NOUNS = ("cat", "dog", "garden")
PRECOMPUTED = "ours, with precomputed posteriors"
SCALED = "and `data.scaled_decoding`"
VISION_SIDE = 224  # pixels that the vision tower takes


def main() -> None:
    """Print the tables."""
    options = arguments()
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if options.memory:
            print("| images | rows/s | peak memory of all processes, MB | of the driver, MB |\n|---|---|---|---|")
            for count in options.memory:
                memory(place / str(count), count)
            return
        photos(place / "photos", options.images)
        sys.path.insert(0, str(ROOT))
        from tests.tiny_annotators import tiny_blip2, tiny_clipseg

        tiny_blip2(place / "blip2")
        tiny_clipseg(place / "clipseg")
        speed(place, options.images, options.rounds)


def speed(place: Path, images: int, rounds: int) -> None:
    """Build and read with both, in turn."""
    import torch

    torch.set_num_threads(1)
    peer = Loop(place)
    steps = (
        PipelineStep("caption", partial(_captioner, str(place / "blip2")), 16, "caption", actors=(1, 1), cpus=1.0),
        PipelineStep("entities", Nouns, 1024, "entities"),
        PipelineStep("masks", partial(_segmenter, str(place / "clipseg")), 16, "masks", actors=(1, 1), cpus=1.0),
    )
    rates: dict[str, list[float]] = {"ours": [], "the original's loop": []}
    sizes: dict[str, float] = {}
    reading: dict[str, list[float]] = {"ours": [], PRECOMPUTED: [], SCALED: [], "the original's loop": []}
    with ray_on(cpus=2):
        for number in range(rounds):
            dest = place / f"set-{number}"
            with Shown() as shown:
                result = built(dest, place / "photos", steps)
            rates["ours"].append(shown.rate / (os.cpu_count() or 1))
            sizes["ours"] = sum(path.stat().st_size for path in dest.glob("data/*")) / result.rows
            began = time.perf_counter()
            rows = peer.convert(place / "photos", place / "peer.tsv")
            rates["the original's loop"].append(images / (time.perf_counter() - began))
            sizes["the original's loop"] = (place / "peer.tsv").stat().st_size / rows
            reading["ours"].append(timed(partial(read_ours, dest)))
            column = place / f"posteriors-{number}"
            add_posteriors(dest, column)
            reading[PRECOMPUTED].append(timed(partial(read_ours, dest, column)))
            reading[SCALED].append(timed(partial(read_ours, dest, column, VISION_SIDE)))
            reading["the original's loop"].append(timed(partial(read_peer, place / "peer.tsv")))
    print("| | images/s per core, building | kB per record | records/s per core, read and decoded |\n|---|---|---|---|")
    for name, read in reading.items():
        rate = f"{statistics.median(rates[name]):,.1f}" if name in rates else ""
        size = f"{sizes[name] / 1e3:,.0f}" if name in sizes else ""
        print(f"| {name} | {rate} | {size} | {statistics.median(read):,.1f} |")


class Shown(AbstractContextManager["Shown"]):
    """Rows a second of a build between its first and its last finished chunk, so without start-up."""

    def __enter__(self) -> "Shown":
        self.seen: list[tuple[float, int]] = []
        self.update = Progress.update
        Progress.update = lambda _, done, state: self._note(done, state)  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Progress.update = self.update  # type: ignore[method-assign]

    def _note(self, done: int, state: str) -> None:
        self.seen.append((time.perf_counter(), int(state.split(" rows")[0].replace(",", ""))))

    @property
    def rate(self) -> float:
        """Rows a second."""
        (began, first), (ended, last) = self.seen[0], self.seen[-1]
        return (last - first) / (ended - began)


class Loop:
    """One image at a time, as the original's script does it."""

    def __init__(self, place: Path) -> None:
        self.caption = _captioner(str(place / "blip2"))
        self.masks = _segmenter(str(place / "clipseg"))

    def convert(self, source: Path, target: Path) -> int:
        """Write the TSV; returns its rows."""
        rows = 0
        with target.open("w") as file:
            for path in sorted(source.rglob("*.jpg")):
                image = Image.open(path).convert("RGB")
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                image = image.crop((left, top, left + side, top + side))
                data = io.BytesIO()
                image.save(data, "PNG")  # what carries the pixels to our annotators; its cost is not the loop's
                sample = Sample(path.name, path.name, data.getvalue())
                sample.__dict__["image"] = image
                (caption,) = self.caption([sample])
                sample.caption = f"{NOUNS[rows % 3]} {caption}"
                sample.spans = [Span(sample.caption.split()[0], 0, len(sample.caption.split()[0]))]
                (cuts,) = self.masks([sample])
                cells = [sample.caption, sample.spans[0].text, _png(image.resize((512, 512)))]
                for cut in cuts:
                    mask = main_part(widen(cut.probability > 76, 0.01)) if cut.probability.max() > 76 else None
                    mask = np.ones(cut.probability.shape, bool) if mask is None or not mask.any() else mask
                    box = square_box(mask)
                    crop = image.crop(box)
                    white = np.where(mask[box[1] : box[3], box[0] : box[2], None], np.asarray(crop), 255)
                    cells += [_png(each.resize((512, 512))) for each in (crop, Image.fromarray(white.astype(np.uint8)))]
                file.write("\t".join(cells) + "\n")
                rows += 1
        return rows


class Nouns:
    """The same entity for both sides: random models name nothing."""

    name = "nouns"

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans | Rejection]:
        for number, sample in enumerate(samples):
            sample.caption = f"{NOUNS[number % 3]} {sample.caption}"
        return [EntitySpans([Span(s.caption.split()[0], 0, len(s.caption.split()[0]))], []) for s in samples]


class Anything:
    """The whole image as a mask, and a caption, without any model: what is left is the pipeline itself."""

    name = "anything"

    def __init__(self, field: str) -> None:
        self.field = field

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        if self.field == "caption":
            return ["a cat in the garden" for _ in samples]
        if self.field == "entities":
            return [EntitySpans([Span("cat", 2, 5)], []) for _ in samples]
        answers = []
        for sample in samples:
            mask = np.zeros((sample.image.height, sample.image.width), np.uint8)
            mask[mask.shape[0] // 4 : -mask.shape[0] // 4, mask.shape[1] // 4 : -mask.shape[1] // 4] = 255
            answers.append([EntityMask(mask)])
        return answers


def memory(place: Path, images: int) -> None:
    """Build with steps that cost next to nothing, and watch the memory of all processes."""
    photos(place / "photos", images, size=(256, 192), distinct=50)
    steps = tuple(
        PipelineStep(field, partial(Anything, field), 16, field, actors=(1, 1) if field == "masks" else (0, 0))
        for field in ("caption", "entities", "masks")
    )
    with ray_on(cpus=2), watched() as peak:
        result = built(place / "set", place / "photos", steps)
    print(
        f"| {images:,} | {result.rate:,.1f} | {peak['all'] / 2**20:,.0f} | {peak['driver'] / 2**20:,.0f} |", flush=True
    )


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """Peak memory (proportional set size: shared pages count once) of this process and all that it started."""
    peak = {"all": 0, "driver": 0}
    ended = threading.Event()
    me = psutil.Process()

    def watch() -> None:
        while not ended.wait(0.5):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, OSError):
                    continue  # it has just ended
            peak["all"] = max(peak["all"], total)
            peak["driver"] = max(peak["driver"], me.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def built(dest: Path, source: Path, steps: Sequence[PipelineStep]) -> BuildResult:
    """One build, as the preset `photos` with models would be."""
    options = ComposeOptions(image_format="jpeg", max_area=1.0, min_area=0.0)
    return build(dest, ImageFolderReader(source), BuildSettings(steps, options, {}, chunk_rows=32))


@contextmanager
def ray_on(cpus: int) -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def timed(read: Callable[[], int]) -> float:
    """Records a second of CPU time of one pass, after one that looks at the files for the first time."""
    read()
    began = time.process_time()
    return read() / (time.process_time() - began)


def read_ours(folder: Path, column: Path | None = None, at_least: int = 0) -> int:
    """The images that stage 3 takes of every record, decoded, by the product's own reader and templates.

    With the column of posteriors the target is not decoded, with `at_least` the crops are scaled while decoding.
    """
    if column is None:
        dataset: RecordDataset | RecordsWithColumn = RecordDataset(folder)
    else:
        fields = [name for name in record_kind("composition").schema.names if name != "image"]
        dataset = RecordsWithColumn(RecordDataset(folder, columns=fields), RecordDataset(column))
    templates, draw = InstructTemplates(), random.Random(0).random
    for number in range(len(dataset)):
        example = templates.composition(dataset[number], draw, at_least)
        if column is None:
            example.target.load()
        else:
            unpack(example.record, POSTERIOR, (2, 4, 64, 64))
    return len(dataset)


def add_posteriors(folder: Path, dest: Path) -> None:
    """A column as `kosmosg run precompute` writes it: random values in the size of Stable Diffusion 1.5's latents."""
    values = np.random.default_rng(0).normal(size=(2, 4, 64, 64)).astype(STORED_AS).tobytes()
    rows = [{"id": record["id"], POSTERIOR: values} for record in RecordDataset(folder, columns=["id"])]
    shard = write_records(dest, "data/part-00000.parquet", POSTERIOR, rows)
    write_manifest(dest, POSTERIOR, [shard])


def read_peer(path: Path) -> int:
    """The same of a TSV of base64 PNGs: target, and of each entity one of the two crops."""
    rows = 0
    with path.open() as file:
        for line in file:
            cells = line.rstrip("\n").split("\t")
            for cell in [cells[2], *cells[3::2]]:
                Image.open(io.BytesIO(base64.b64decode(cell))).convert("RGB").load()
            rows += 1
    return rows


def photos(folder: Path, count: int, size: tuple[int, int] = (1024, 768), distinct: int = 200) -> None:
    """JPEG files that look and compress like photos: smooth colours with some noise."""
    rng = np.random.default_rng(0)
    made: list[bytes] = []
    for number in range(count):
        path = folder / f"{number % 100:02d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(made) < distinct:
            small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.int16)
            pixels = pixels + rng.integers(-12, 13, pixels.shape)
            data = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=88)
            made.append(data.getvalue())
        path.write_bytes(made[number % len(made)])


def _captioner(model: str) -> Any:
    from kosmosg.data.annotators.blip2 import Blip2Captioner

    return Always(Blip2Captioner(model, device="cpu"))


def _segmenter(model: str) -> Any:
    from kosmosg.data.annotators.clipseg import ClipSegSegmenter

    return ClipSegSegmenter(model, device="cpu")


class Always:
    """A captioner whose rejections become words: a random model may have nothing to say."""

    def __init__(self, captioner: Any) -> None:
        self.captioner, self.name = captioner, captioner.name

    def __call__(self, samples: Sequence[Sample]) -> list[str]:
        return [answer if isinstance(answer, str) else "here" for answer in self.captioner(samples)]


def _png(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="+", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
