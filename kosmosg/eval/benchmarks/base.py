"""What a benchmark is: what a model is asked, which networks read its images, and what the numbers are.

A benchmark generates nothing and extracts nothing itself; the platform does both at scale and hands the results to
`score`. An entry of `BENCHMARKS` names a class, so that listing benchmarks loads none of them.
"""

import hashlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kosmosg.errors import ConfigError
from kosmosg.eval.protocol import Protocol
from kosmosg.plugins import find_entry

if typing.TYPE_CHECKING:
    from kosmosg.eval.features.preprocessing import Framing

BENCHMARKS: dict[str, str] = {
    "dreambench": "kosmosg.eval.benchmarks.dreambench:DreamBench",
    "coco": "kosmosg.eval.benchmarks.coco:CocoFid",
}
"""Name of a benchmark -> `module:class`."""

Features = np.ndarray[Any, np.dtype[np.float32]]
"""(N, D), one row an image."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What a user may choose beside the protocol; a benchmark reads what concerns it."""

    data: Path | None = None
    """Folder of real images and captions."""
    subjects: tuple[str, ...] = ()
    """Only these subjects; empty takes all."""
    cases: int = 32
    """Prompts of each kind, where a benchmark makes its own."""
    style: str = "image"
    """How prompts of its own are worded."""
    seed: int = 0
    """Of prompts of its own."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Folder, file or Hub id of a feature network, where it is not the protocol's own."""

    def source(self, protocol: Protocol, network: str) -> str:
        """Where a feature network of the protocol is loaded from."""
        return self.weights.get(network) or protocol.features[network]

    def require_data(self, protocol: Protocol) -> Path:
        """The folder of real images. Raises ConfigError where none was given."""
        if self.data is None:
            raise ConfigError(
                f"evaluate.data: {protocol.name} compares with real images; give the folder that has them"
            )
        return self.data


@dataclass(frozen=True)
class BenchmarkCase:
    """One prompt: text with `<i>` at the places of its images. `group` is the set that its scores belong to."""

    group: str
    text: str
    images: tuple[Image.Image | Path, ...] = ()


@dataclass(frozen=True)
class ImagesToRead:
    """Real images, and the networks that read them, each with its framing."""

    files: tuple[Path, ...]
    networks: Mapping[str, "Framing | None"]


@dataclass(frozen=True)
class ScorePage:
    """How the scores are told: a line for each model, how to read them, tables as (columns, rows)."""

    headlines: Mapping[str, str]
    reading: str
    scores: tuple[Sequence[str], Sequence[Sequence[str]]]
    further: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]] = field(default_factory=dict)
    """Title -> table."""
    published: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    """What others have published on the same benchmark."""


class Benchmark(typing.Protocol):
    """One benchmark, opened: its data were read and checked, nothing is generated yet."""

    protocol: Protocol
    """As changed by what was found, such as a subset; without the digests of data and weights."""
    data_digest: str
    """Of everything that was read: prompts, captions, real images."""
    weights: Mapping[str, str]
    """sha256 of networks that the benchmark runs itself, by name."""
    cases: Sequence[BenchmarkCase]
    """In the order in which images are generated."""
    networks: Mapping[str, "Framing | None"]
    """What reads the generated images."""
    references: Mapping[str, ImagesToRead]
    """Real images by the name under which their features are handed to `score`."""

    def __init__(self, protocol: Protocol, settings: BenchmarkSettings) -> None: ...

    def in_words(self) -> "Benchmark | None":
        """The same cases asked in plain words, for models that look and read; None where there is no such thing."""
        ...

    def score(
        self, files: Sequence[Path], features: Mapping[str, Features], real: Mapping[str, Mapping[str, Features]]
    ) -> list[dict[str, Any]]:
        """Rows of figures for one model, each with its `set`.

        `files` are its images, case after case; `features` those of the images by network, `real` those of the
        references by name and network.
        """
        ...

    def shown(self, rows: int) -> list[int]:
        """Numbers of the cases for the contact sheet; by a rule, none selected by its looks."""
        ...

    def page(self, rows: Sequence[Mapping[str, Any]]) -> ScorePage:
        """How rows of all models are told."""
        ...


class BenchmarkDefaults:
    """What most benchmarks share. A subclass hands its cases to `__init__` and defines `score`."""

    weights: Mapping[str, str] = {}
    networks: Mapping[str, "Framing | None"] = {}
    references: Mapping[str, ImagesToRead] = {}

    def __init__(self, protocol: Protocol, cases: Sequence[BenchmarkCase]) -> None:
        self.protocol = protocol
        self.cases = cases
        self.data_digest = hashlib.sha256(repr([(case.group, case.text) for case in cases]).encode()).hexdigest()[:16]

    def in_words(self) -> "Benchmark | None":
        """There is no such thing."""
        return None

    def shown(self, rows: int) -> list[int]:
        """The first cases."""
        return list(range(min(rows, len(self.cases))))

    def page(self, rows: Sequence[Mapping[str, Any]]) -> ScorePage:
        """Every figure of every row, as it is called."""
        figures = [name for name, value in rows[0].items() if isinstance(value, float)]
        told = [[f"{row[name]:.3f}" for name in figures] for row in rows]
        return ScorePage(
            headlines={
                f"{row['variant']}, {row['set']}": "  ".join(map(" ".join, zip(figures, cells, strict=True)))
                for row, cells in zip(rows, told, strict=True)
            },
            reading="",
            scores=(
                ["model", "set", *figures],
                [[row["variant"], row["set"], *cells] for row, cells in zip(rows, told, strict=True)],
            ),
        )


def open_benchmark(protocol: Protocol, settings: BenchmarkSettings) -> Benchmark:
    """Read and check what a protocol's benchmark needs. Raises ConfigError, DataError."""
    module, _, name = find_entry(BENCHMARKS, protocol.benchmark, "protocol.benchmark").partition(":")
    unknown = sorted(set(settings.weights) - set(protocol.features))
    if unknown:
        known = ", ".join(protocol.features)
        raise ConfigError(f"evaluate.weights.{unknown[0]}: {protocol.name} has no such network; it uses {known}")
    benchmark: Benchmark = getattr(import_module(module), name)(protocol, settings)
    return benchmark


def spread_out(total: int, groups: int, rows: int) -> list[int]:
    """Numbers of cases for a sheet: group after group, another case of each."""
    each = total // groups
    numbers = [group * each + (group + turn) % each for turn in range(each) for group in range(groups)]
    return numbers[:rows]
