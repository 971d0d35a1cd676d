"""DreamBench and COCO from a data folder to numbers: what is asked, drawn, looked at and compared.

Whatever the user can get wrong (folders, weights, counts) is checked before the first image is drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg.eval.benchmarks import coco, dreambench
from kosmosg.eval.features.networks import ClipTexts, Framing, find_weights
from kosmosg.eval.metrics import similarity as fidelity
from kosmosg.eval.metrics.fid import Estimate, Moments, frechet_distance
from kosmosg.eval.protocol import ALL_PHOTOS, ALL_PLAIN, CLIP, DINO, IN_ORDER, INCEPTION, OWN_SMOOTH, Protocol
from kosmosg.eval.result_sheet import SheetRow, result_sheet
from kosmosg.prompt import Prompt
from kosmosg_platform.cluster.session import Scaled, connect
from kosmosg_platform.inference.features import FeatureNetworkSpec, ImageSet, digests, extract_features
from kosmosg_platform.inference.generation import GenerationRequest, SamplingParams, generate_images, open_image

IMAGES = "images"  # folder of what was generated, under that of the evaluation
THUMBNAIL = 192  # pixels a side, of photos and images in the sheet


@dataclass(frozen=True)
class Bench:
    """What is to be measured."""

    protocol: Protocol
    models: Mapping[str, Path]
    """Export or pipeline folders by name."""
    decoder: str
    data: Path
    weights: Mapping[str, str]
    """Folder, file or Hub id of a feature network, where it is not the protocol's own."""
    subjects: tuple[str, ...]
    """Only these of DreamBench; empty takes all."""
    folder: Path
    """Images and features are kept here."""
    rows: int
    """Rows of the contact sheet."""


@dataclass(frozen=True)
class BenchmarkResult:
    """What came out."""

    protocol: Protocol
    """As measured: with the digests of data and weights."""
    rows: list[dict[str, Any]]
    """One for each model, and for DreamBench one for each model and subject (`set`)."""
    sheet: Image.Image


def run_benchmark(bench: Bench, experiment: Scaled) -> BenchmarkResult:
    """Draw what is missing, look at what is new, compare. Raises KosmosGError for what the user can mend."""
    return {"dreambench": run_dreambench, "coco": run_coco}[bench.protocol.benchmark](bench, experiment)


def run_dreambench(bench: Bench, experiment: Scaled) -> BenchmarkResult:
    """Likeness to the subject and to the words, over all and by subject."""
    protocol = bench.protocol
    cases = dreambench.make_cases(bench.data, protocol.count, bench.subjects)
    subjects = {case.subject.name: case.subject for case in cases}
    if len(subjects) != len(dreambench.SUBJECTS):
        protocol = protocol.changed(subset=f"{len(subjects)} subjects")
    if protocol.reference == ALL_PHOTOS:
        photos = {name: dreambench.real_photos(bench.data, subject) for name, subject in subjects.items()}
    else:
        photos = {case.subject.name: [case.photo] for case in cases}
    looks = tuple(FeatureNetworkSpec.at(name, _weights(bench, name)) for name in (DINO, CLIP))
    protocol = protocol.measured(dreambench.digest_cases(cases, photos), digests(looks))

    real = list(dict.fromkeys(photo for of_subject in photos.values() for photo in of_subject))
    sentences = list(dict.fromkeys(case.sentence for case in cases))
    requests = [GenerationRequest(case.text, (case.photo,)) for case in cases]
    with connect(experiment):
        drawn = _generate_all(bench, requests, experiment)
        views = {variant: ImageSet(tuple(files), looks) for variant, files in drawn.items()}
        seen = extract_features(
            views | {"the real photos": ImageSet(tuple(real), looks)}, experiment.scale, _features(bench)
        )
    words = ClipTexts(_weights(bench, CLIP)).texts(sentences)

    asked = [case for case in cases for _ in range(protocol.pictures)]
    row_of = {photo: row for row, photo in enumerate(real)}
    rows = []
    for variant in drawn:
        scores = fidelity.picture_scores(
            seen[variant],
            seen["the real photos"],
            words,
            photos_of=[[row_of[photo] for photo in photos[case.subject.name]] for case in asked],
            sentence_of=[sentences.index(case.sentence) for case in asked],
        )
        names = [case.subject.name for case in asked]
        head = {"variant": variant, "protocol": protocol.protocol_id}
        rows.append(head | {"set": "all", "pictures": len(asked)} | _flat(fidelity.overall(scores, names)))
        rows += [
            head | {"set": subject, "pictures": names.count(subject)} | means
            for subject, means in fidelity.by_subject(scores, names).items()
        ]
    shown = [number * protocol.pictures for number in _spread_out(len(cases), len(subjects), bench.rows)]
    return BenchmarkResult(protocol, rows, _sheet(requests, drawn, shown, protocol.pictures))


def run_coco(bench: Bench, experiment: Scaled) -> BenchmarkResult:
    """Frechet distance between drawn and real images."""
    protocol = bench.protocol
    held = coco.read_folder(bench.data)
    if protocol.prompts == IN_ORDER:
        chosen = coco.first(held.captions, protocol.count)
    else:
        chosen = coco.published_subset(held.captions, protocol.count or len(held.captions), protocol.seed)
        protocol = protocol.changed(subset=held.origin)
    real = coco.own_images(chosen) if protocol.reference == OWN_SMOOTH else list(held.images)
    plain = protocol.reference == ALL_PLAIN
    weights = _weights(bench, INCEPTION)
    look_real = FeatureNetworkSpec.at(INCEPTION, weights, Framing(protocol.resize, "plain" if plain else "smooth"))
    look_drawn = FeatureNetworkSpec.at(INCEPTION, weights, Framing(protocol.resize, "" if plain else "smooth"))
    protocol = protocol.measured(coco.digest_captions(chosen, real), digests([look_real]))

    requests = [GenerationRequest(caption.text) for caption in chosen]
    with connect(experiment):
        drawn = _generate_all(bench, requests, experiment)
        views = {variant: ImageSet(tuple(files), (look_drawn,)) for variant, files in drawn.items()}
        seen = extract_features(
            views | {"the real images": ImageSet(tuple(real), (look_real,))}, experiment.scale, _features(bench)
        )
    reference = Moments.of(seen["the real images"][INCEPTION])
    rows = [
        {
            "variant": variant,
            "protocol": protocol.protocol_id,
            "set": "all",
            "pictures": len(drawn[variant]),
            "real": len(real),
            "fid": frechet_distance(Moments.of(seen[variant][INCEPTION]), reference),
        }
        for variant in drawn
    ]
    shown = [number * protocol.pictures for number in _spread_out(len(requests), 1, bench.rows)]
    return BenchmarkResult(protocol, rows, _sheet(requests, drawn, shown, protocol.pictures))


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


def _generate_all(bench: Bench, requests: list[GenerationRequest], experiment: Scaled) -> dict[str, list[Path]]:
    sampling, folder = sampling_of(bench.protocol), bench.folder / IMAGES
    return {
        variant: generate_images(
            f"evaluate: {variant}", model, bench.decoder, requests, sampling, experiment.scale, folder
        ).paths
        for variant, model in bench.models.items()
    }


def _weights(bench: Bench, network: str) -> str:
    return find_weights(network, bench.weights.get(network) or bench.protocol.features[network])


def _features(bench: Bench) -> Path:
    return bench.folder / "features"


def _flat(estimates: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Mean and interval as plain numbers; what is not known (one subject) is None, because JSON has no such number."""
    flat: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        known = estimate.low == estimate.low
        flat |= {
            name: estimate.mean,
            f"{name}_low": estimate.low if known else None,
            f"{name}_high": estimate.high if known else None,
        }
    return flat


def _spread_out(total: int, groups: int, rows: int) -> list[int]:
    """Numbers of the cases in the sheet: a group after the other, another prompt of each, nothing selected by looks."""
    each = total // groups
    numbers = [group * each + (group + turn) % each for turn in range(each) for group in range(groups)]
    return numbers[:rows]


def _sheet(
    requests: list[GenerationRequest], drawn: Mapping[str, list[Path]], shown: list[int], each: int
) -> Image.Image:
    rows = []
    for number in shown:
        order = requests[number // each]
        images = [_thumbnail(open_image(image) if isinstance(image, Path) else image) for image in order.images]
        pictures = [_thumbnail(open_image(files[number])) for files in drawn.values()]
        rows.append(SheetRow(Prompt(order.text, images=images), pictures))
    return result_sheet(rows, list(drawn))


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
