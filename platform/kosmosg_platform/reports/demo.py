"""The report of the end-to-end demo: what ran, how long, losses, scores, images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg.config import KosmosGConfig
from kosmosg_platform.console import read_metrics
from kosmosg_platform.reports.page import Figure, PageSection, Report, Table, curves
from kosmosg_platform.run_paths import STAGES

SAID = {
    "build_dataset": "Ray Data: decode, caption, entities, masks, compose; Parquet shards and a manifest",
    "pretrain": "language modelling on words, captioned images and interleaved pages",
    "align": "the conditioner learns to give what the U-Net reads, from captions alone; the language model is frozen",
    "instruct": "end to end through the frozen U-Net, on prompts in which images stand between the words",
    "evaluate": "subjects that no training ever saw, judged by a recogniser",
    "endpoint": "deployed with Ray Serve and called over HTTP",
}


def demo_report(folder: Path, found: Mapping[str, Mapping[str, Any]], tracking: str) -> Report:
    """Compose the page from what each step found (see `jobs/demo.py`); images are read from `folder`."""
    seconds = sum(float(step["seconds"]) for step in found.values())
    scores: list[dict[str, Any]] = found["evaluate"]["scores"]
    facts = {"end to end": f"{seconds / 60:.1f} min", "records": str(sum(found["build_dataset"]["rows"].values()))}
    two = {row["variant"]: row for row in scores if row["set"] == "two"}
    before, after = two["before instruct"], two["after instruct"]
    # Three measures, from the easiest to the hardest: a card that shows the first alone would flatter a short training.
    facts["hue error, two subjects"] = f"{before['hue']:.0f}° → {after['hue']:.0f}°"
    facts["pattern right"] = f"{before['pattern']:.0%} → {after['pattern']:.0%}"
    facts["whole subject right"] = f"{before['whole']:.0%} → {after['whole']:.0%}"
    sections = [
        PageSection(
            "Subjects it has never seen",
            "Each row is one prompt, none selected. The reference images show subjects whose combination of shape, "
            "colour and pattern was kept from every training stage, cut out of other scenes than the one asked for. "
            + _short(found, two)
            + _conditioner(Path(found["instruct"]["export"])),
            [Figure.of(Image.open(folder / "evaluate" / "sheet.png"), "reference images | prompt | result")],
        ),
        PageSection("Scores", _reading(), table=score_table(scores)),
        PageSection("Losses", _CURVES, figures=[Figure(_losses(found), "training loss of each stage")]),
        _endpoint(folder, found["endpoint"]),
        PageSection("What ran", table=_steps(found)),
        PageSection(
            "Look further",
            "Every stage is a run in MLflow, linked to its parent, with curves, sample images, the resolved settings "
            f"and the registered model: mlflow ui --backend-store-uri {tracking}",
        ),
    ]
    return Report(
        "Kosmos-G, end to end",
        "A dataset, three training stages, an evaluation and a served endpoint, all made on this machine.",
        facts,
        sections,
    )


def score_table(scores: list[dict[str, Any]]) -> Table:
    """Rows of `evaluate` as a table: one for each variant and number of entities."""
    columns = ["variant", "entities", "prompts", "shape", "pattern", "hue error", "background", "whole subject"]
    rows = [
        [
            row["variant"],
            row["set"],
            str(row["prompts"]),
            *(f"{row[name]:.2f}" for name in ("shape", "pattern")),
            f"{row['hue']:.0f}°",
            *(f"{row[name]:.2f}" for name in ("background", "whole")),
        ]
        for row in scores
    ]
    return Table(columns, rows)


_CURVES = (
    "pretrain: mean cross-entropy of the next token, in nats; it starts from trained weights, so it hardly moves. "
    "align: squared distance between what the conditioner gives and what CLIP's text encoder gives for the same "
    "caption; good is a fall that flattens. instruct: squared error of the U-Net's prediction at noise levels where "
    "the condition matters; most of it is noise that nobody can predict, so a small fall is what learning looks like "
    "here, and the scores above, not this curve, say what was learned."
)


def _short(found: Mapping[str, Mapping[str, Any]], two: Mapping[str, Mapping[str, Any]]) -> str:
    """What a few minutes of training are, beside the model that ships."""
    samples, shipped = int(found["instruct"]["samples"]), two["shipped model"]
    return (
        f"This is a short run: stage 3 saw {samples:,} samples, a few minutes' worth. The column “shipped model” shows "
        "the same prompts with the model that comes with the package, trained for longer: of its subjects, two in an "
        f"image, {shipped['whole']:.0%} are wholly right."
    )


def _conditioner(export: Path) -> str:
    """A sentence where the model is not the paper's."""
    kind = KosmosGConfig.from_pretrained(export).aligner_config.kind
    if kind == "alignernet":
        return ""
    return (
        f" In the place of the paper's AlignerNet this run trains a simpler conditioner ({kind}), which finds patterns "
        "in fewer steps; the shipped model has AlignerNet."
    )


def _reading() -> str:
    return (
        "Shares of entities (of images, for the background) that the recogniser reads as asked for; the hue error "
        "is a median in degrees, where chance is 90. A whole subject has shape, pattern and hue (within 22.5°) right. "
        "“text only” asks the same model in plain words, without the reference images."
    )


def _losses(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    series = {}
    for stage in STAGES:
        lines = read_metrics(Path(found[stage]["export"]).parent / "metrics.jsonl")
        series[stage] = [(float(line["step"]), float(line["loss"])) for line in lines]
    return curves(series, "optimizer step", "loss")


def _endpoint(folder: Path, asked: Mapping[str, Any]) -> PageSection:
    return PageSection(
        "The endpoint",
        f"POST {asked['route']} with “{asked['prompt']}” and {asked['images']} images gave this image in "
        f"{asked['request_seconds']:.1f} s (seed {asked['seed']}).",
        [Figure.of(Image.open(folder / asked["sheet"]), "reference images | prompt | answer of the endpoint")],
    )


def _steps(found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[name, SAID[name], f"{float(step['seconds']):.0f} s"] for name, step in found.items()]
    return Table(["step", "what it does", "time"], rows)
