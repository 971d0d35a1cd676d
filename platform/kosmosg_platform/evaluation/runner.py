"""Runs a benchmark: generate missing images, extract missing features, compute scores.

Everything that the user can get wrong (folders, weights, counts) is checked before the first image is generated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg.data.contact_sheet import SheetRow, result_sheet
from kosmosg.eval.benchmarks.base import Benchmark, BenchmarkSettings, open_benchmark
from kosmosg.eval.features.base import find_weights
from kosmosg.eval.protocol import Protocol
from kosmosg.prompt import Prompt
from kosmosg_platform.cluster.session import Scaled, connect
from kosmosg_platform.inference.features import FeatureNetworkSpec, ImageSet, digests, extract_features
from kosmosg_platform.inference.generation import generate_images, open_image
from kosmosg_platform.inference.sampling import GenerationRequest, SamplingParams

IMAGES = "images"
"""Folder of the generated images, inside that of the evaluation."""
IN_WORDS = "text only"
"""Name of the last model when it gets prompts without images."""
THUMBNAIL = 192
"""Pixels per side, of photos and images in the sheet."""


@dataclass(frozen=True)
class Evaluation:
    """What to measure."""

    protocol: Protocol
    settings: BenchmarkSettings
    models: Mapping[str, Path]
    """Export or pipeline folders by name."""
    decoder: str
    folder: Path
    """Images and features are kept here."""
    rows: int
    """Rows of the contact sheet."""
    in_words: bool
    """Also generate from text alone with the last model, if the benchmark supports it."""


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of an evaluation."""

    benchmark: Benchmark
    protocol: Protocol
    """As measured: with the digests of data and weights."""
    rows: list[dict[str, Any]]
    """Figures of each model (`variant`) and set."""
    sheet: Image.Image


def run_benchmark(evaluation: Evaluation, experiment: Scaled) -> BenchmarkResult:
    """Measure every model. Raises KosmosGError for user errors."""
    benchmark = open_benchmark(evaluation.protocol, evaluation.settings)
    read_elsewhere = [real.networks for real in benchmark.references.values()]
    specs = {
        network: [
            FeatureNetworkSpec.at(network, _weights(evaluation, network), framing)
            for framing in dict.fromkeys(of.get(network) for of in (benchmark.networks, *read_elsewhere))
        ]
        for network in benchmark.networks
    }
    read = digests([spec for of_network in specs.values() for spec in of_network])
    protocol = benchmark.protocol.measured(benchmark.data_digest, {**read, **benchmark.weights})
    asked: list[tuple[str, Path, Benchmark]] = [(name, model, benchmark) for name, model in evaluation.models.items()]
    worded = benchmark.in_words() if evaluation.in_words else None
    if worded is not None:
        asked.append((IN_WORDS, list(evaluation.models.values())[-1], worded))

    def read_by(networks: Mapping[str, Any]) -> tuple[FeatureNetworkSpec, ...]:
        return tuple(spec for name in networks for spec in specs[name] if spec.framing == networks[name])

    with connect(experiment):
        files = {
            name: generate_images(
                f"evaluate: {name}",
                model,
                evaluation.decoder,
                [GenerationRequest(case.text, case.images) for case in of.cases],
                sampling_of(benchmark.protocol),
                experiment.scale,
                evaluation.folder / IMAGES,
            ).paths
            for name, model, of in asked
        }
        sets = {name: ImageSet(tuple(paths), read_by(benchmark.networks)) for name, paths in files.items()}
        sets |= {name: ImageSet(real.files, read_by(real.networks)) for name, real in benchmark.references.items()}
        features = extract_features(
            {name: images for name, images in sets.items() if images.looks},
            experiment.scale,
            evaluation.folder / "features",
        )
    real = {name: features[name] for name in benchmark.references}
    rows = [
        {"variant": name, "protocol": protocol.protocol_id, **row}
        for name, _, of in asked
        for row in of.score(files[name], features.get(name, {}), real)
    ]
    return BenchmarkResult(benchmark, protocol, rows, _sheet(evaluation, benchmark, files))


def sampling_of(protocol: Protocol) -> SamplingParams:
    """How the images of a protocol are generated."""
    return SamplingParams(
        steps=protocol.steps,
        guidance=protocol.guidance,
        scheduler=None if protocol.solver == "decoder" else protocol.solver,
        size=protocol.size,
        images_per_prompt=protocol.pictures,
        batch=protocol.batch,
        noise=protocol.noise,
        seed=protocol.seed,
    )


def _weights(evaluation: Evaluation, network: str) -> str:
    return find_weights(network, evaluation.settings.source(evaluation.protocol, network))


def _sheet(evaluation: Evaluation, benchmark: Benchmark, files: Mapping[str, list[Path]]) -> Image.Image:
    """The models' first image of each shown case."""
    rows = []
    for number in benchmark.shown(evaluation.rows):
        case = benchmark.cases[number]
        images = [_thumbnail(open_image(image) if isinstance(image, Path) else image) for image in case.images]
        first = number * benchmark.protocol.pictures
        generated = [_thumbnail(open_image(files[name][first])) for name in evaluation.models]
        rows.append(SheetRow(Prompt(case.text, images=images), generated))
    return result_sheet(rows, list(evaluation.models))


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
