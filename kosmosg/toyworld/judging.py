"""The toy world as a benchmark: the recogniser reads each image where its prompt expects the entities."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from kosmosg.eval.benchmarks.base import BenchmarkCase, BenchmarkSettings, Features, ImagesToRead, ScorePage
from kosmosg.eval.features.base import weights_sha256
from kosmosg.eval.features.preprocessing import Framing
from kosmosg.eval.protocol import RECOGNISER, Protocol
from kosmosg.toyworld.assets import toyworld_folder
from kosmosg.toyworld.benchmark import Style, ToyworldPrompt, score, toyworld_prompts

SETS = {"one": 1, "two": 2, "three": 3}
"""Name of each set of prompts and the entities in them."""


SetPrompt = tuple[str, ToyworldPrompt]
"""Name of the set, the prompt, and the scene it describes."""


def prompts_of_sets(count: int, seed: int, style: Style) -> list[SetPrompt]:
    """`count` prompts of every set, in one list, with held-out subjects; all styles describe the same scenes."""
    return [
        (name, prompt)
        for name, entities in SETS.items()
        for prompt in toyworld_prompts(count, entities, held_out=True, seed=seed, style=style)
    ]


def in_turn(prompts: Sequence[SetPrompt]) -> list[int]:
    """Numbers of the prompts, one of each set in turn."""
    of_set = {name: [index for index, (of, _) in enumerate(prompts) if of == name] for name in SETS}
    return [index for group in zip(*of_set.values(), strict=True) for index in group]


class ToyworldBenchmark:
    """The benchmark; see `kosmosg.eval.benchmarks.base.Benchmark`."""

    networks: Mapping[str, Framing | None] = {}
    references: Mapping[str, ImagesToRead] = {}

    def __init__(self, protocol: Protocol, settings: BenchmarkSettings) -> None:
        self.settings = settings
        self.protocol = protocol.changed(count=settings.cases, prompts=settings.style)
        self.asked = prompts_of_sets(settings.cases, settings.seed, cast(Style, settings.style))
        self.data_digest = hashlib.sha256("".join(case.prompt.sha256() for _, case in self.asked).encode()).hexdigest()[
            :16
        ]
        self.weights = {RECOGNISER: weights_sha256(str(toyworld_folder() / "recogniser"))}
        self.cases = [BenchmarkCase(name, case.prompt.text, case.prompt.images) for name, case in self.asked]

    def in_words(self) -> "ToyworldBenchmark":
        """The same scenes as text-only prompts: what a model generates without the images."""
        worded = ToyworldBenchmark(self.protocol, self.settings)
        worded.asked = prompts_of_sets(self.settings.cases, self.settings.seed, "text")
        worded.cases = [BenchmarkCase(name, case.prompt.text, case.prompt.images) for name, case in worded.asked]
        return worded

    def score(
        self, files: Sequence[Path], features: Mapping[str, Features], real: Mapping[str, Mapping[str, Features]]
    ) -> list[dict[str, Any]]:
        """One row for each set of prompts."""
        rows = []
        for name in SETS:
            chosen = [index for index, (of, _) in enumerate(self.asked) if of == name]
            pixels = np.stack([np.asarray(Image.open(files[index]).convert("RGB")) for index in chosen])
            measured = score(pixels, [self.asked[index][1].scene for index in chosen])
            rows.append({"set": name, "prompts": len(chosen), **measured})
        return rows

    def shown(self, rows: int) -> list[int]:
        """The first prompts of each set in turn."""
        return in_turn(self.asked)[:rows]

    def page(self, rows: Sequence[Mapping[str, Any]]) -> ScorePage:
        """Accuracies, and the hue error."""
        return ScorePage(
            headlines={
                f"{row['variant']}, {row['set']}": (
                    f"shape {row['shape']:.2f}  pattern {row['pattern']:.2f}  hue error {row['hue']:.0f}°  "
                    f"background {row['background']:.2f}  whole subject {row['whole']:.2f}"
                )
                for row in rows
            },
            reading=(
                "Shares of entities (of images, for the background) that the recogniser reads as requested; the hue "
                "error is the median in degrees, where chance is 90. A whole subject has the right shape, pattern and "
                "hue (within 22.5°). “text only” is the last model with the prompt in words, without reference images."
            ),
            scores=(
                ["variant", "entities", "prompts", "shape", "pattern", "hue error", "background", "whole subject"],
                [
                    [row["variant"], row["set"], str(row["prompts"])]
                    + [f"{row[name]:.2f}" for name in ("shape", "pattern")]
                    + [f"{row['hue']:.0f}°"]
                    + [f"{row[name]:.2f}" for name in ("background", "whole")]
                    for row in rows
                ],
            ),
        )
