"""The report of the end-to-end demo: steps and their times, losses, scores, images."""

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
    "pretrain": "language modelling on text, captioned images and interleaved documents",
    "align": "trains the conditioner on captions alone to match CLIP's text embeddings; the language model is frozen",
    "instruct": "end to end through the frozen U-Net, on prompts that mix text and images",
    "evaluate": "held-out subjects, judged by a recogniser",
    "endpoint": "deployed with Ray Serve and called over HTTP",
}


def demo_report(folder: Path, found: Mapping[str, Mapping[str, Any]], tracking: str) -> Report:
    """Compose the page from what each step found (see `jobs/demo.py`); images are read from `folder`."""
    seconds = sum(float(step["seconds"]) for step in found.values())
    scores: list[dict[str, Any]] = found["evaluate"]["scores"]
    facts = {"end to end": f"{seconds / 60:.1f} min", "records": str(sum(found["build_dataset"]["rows"].values()))}
    two = {row["variant"]: row for row in scores if row["set"] == "two"}
    before, after = two["before instruct"], two["after instruct"]
    # Three metrics, from the easiest to the hardest: the first alone would make a short training run look too good.
    facts["hue error, two subjects"] = f"{before['hue']:.0f}° → {after['hue']:.0f}°"
    facts["pattern right"] = f"{before['pattern']:.0%} → {after['pattern']:.0%}"
    facts["whole subject right"] = f"{before['whole']:.0%} → {after['whole']:.0%}"
    sections = [
        PageSection(
            "Subjects it has never seen",
            "Each row is one prompt; the rows are not cherry-picked. The reference images show subjects whose "
            "combination of shape, colour and pattern was held out of every training stage, cut out of other scenes. "
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
            "Every stage is an MLflow run, linked to its parent, with curves, sample images, the resolved settings and "
            f"the registered model: mlflow ui --backend-store-uri {tracking}",
        ),
    ]
    return Report(
        "Kosmos-G, end to end",
        "A dataset, three training stages, an evaluation and a served endpoint, all made on this machine.",
        facts,
        sections,
    )


def score_table(scores: list[dict[str, Any]]) -> Table:
    """The scores of `evaluate` as a table: one row per model and number of entities."""
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
    "pretrain: mean cross-entropy of the next token, in nats; it starts from trained weights, so it hardly changes. "
    "align: squared distance between the conditioner's output and CLIP's text embedding of the same caption; it should "
    "fall and then flatten. instruct: squared error of the U-Net's prediction at noise levels where the condition "
    "matters. Most of this error is unpredictable noise, so even good training lowers it only a little; the scores "
    "above, not this curve, show what was learned."
)


def _short(found: Mapping[str, Mapping[str, Any]], two: Mapping[str, Mapping[str, Any]]) -> str:
    """How short the run was, compared with the shipped model."""
    samples, shipped = int(found["instruct"]["samples"]), two["shipped model"]
    return (
        f"This is a short run: stage 3 saw only {samples:,} samples, a few minutes of training. The column “shipped "
        "model” shows the same prompts with the model that comes with the package, which was trained for longer: with "
        f"two subjects per image, {shipped['whole']:.0%} of them are entirely right."
    )


def _conditioner(export: Path) -> str:
    """A sentence if the conditioner is not the paper's."""
    kind = KosmosGConfig.from_pretrained(export).aligner_config.kind
    if kind == "alignernet":
        return ""
    return (
        f" Instead of the paper's AlignerNet, this run trains a simpler conditioner ({kind}), which learns patterns in "
        "fewer steps; the shipped model has AlignerNet."
    )


def _reading() -> str:
    return (
        "Shares of entities (of images, for the background) that the recogniser reads as requested; the hue error is "
        "the median in degrees, where chance is 90. A whole subject has the right shape, pattern and hue (within "
        "22.5°). “text only” is the same model with the prompt in words, without the reference images."
    )


def _losses(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    series = {}
    for stage in STAGES:
        lines = read_metrics(Path(found[stage]["export"]).parent / "metrics.jsonl")
        series[stage] = [(float(line["step"]), float(line["loss"])) for line in lines if "loss" in line]
    return curves(series, "optimizer step", "loss")


def _endpoint(folder: Path, asked: Mapping[str, Any]) -> PageSection:
    return PageSection(
        "The endpoint",
        f"POST {asked['route']} with “{asked['prompt']}” and {asked['images']} images gave this image in "
        f"{asked['request_seconds']:.1f} s (seed {asked['seed']}).",
        [Figure.of(Image.open(folder / asked["sheet"]), "reference images | prompt | the endpoint's result")],
    )


def _steps(found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[name, SAID[name], f"{float(step['seconds']):.0f} s"] for name, step in found.items()]
    return Table(["step", "what it does", "time"], rows)
