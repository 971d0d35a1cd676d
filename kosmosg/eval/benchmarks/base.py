"""The benchmark interface: the prompts, which networks read the images, and what the scores are.

A benchmark does not generate images or extract features itself; the platform does both at scale and passes the results
to `score`. An entry of `BENCHMARKS` names a class, so that listing benchmarks loads none of them.
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
"""(N, D), one row per image."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What a user may choose besides the protocol; a benchmark reads the settings that apply to it."""

    data: Path | None = None
    """Folder of real images and captions."""
    subjects: tuple[str, ...] = ()
    """Only these subjects; empty means all."""
    cases: int = 32
    """Prompts per set, for benchmarks that create their own."""
    style: str = "image"
    """How such prompts are worded."""
    seed: int = 0
    """Seed of such prompts."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Folder, file or Hub id of a feature network, if it is not the protocol's."""

    def source(self, protocol: Protocol, network: str) -> str:
        """Where a feature network of the protocol is loaded from."""
        return self.weights.get(network) or protocol.features[network]

    def require_data(self, protocol: Protocol) -> Path:
        """The folder of real images. Raises ConfigError if none was given."""
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
    """Real images, and the networks that read them, each with its preprocessing."""

    files: tuple[Path, ...]
    networks: Mapping[str, "Framing | None"]


@dataclass(frozen=True)
class ScorePage:
    """How the scores are presented: one line per model, an explanation, tables as (columns, rows)."""

    headlines: Mapping[str, str]
    reading: str
    scores: tuple[Sequence[str], Sequence[Sequence[str]]]
    further: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]] = field(default_factory=dict)
    """Title -> table."""
    published: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    """Published results on the same benchmark."""


class Benchmark(typing.Protocol):
    """One opened benchmark: its data were read and checked, but nothing has been generated yet."""

    protocol: Protocol
    """The protocol, changed to match the data, for example to a subset; without digests of data and weights."""
    data_digest: str
    """Digest of everything that was read: prompts, captions, real images."""
    weights: Mapping[str, str]
    """sha256 of networks that the benchmark runs itself, by name."""
    cases: Sequence[BenchmarkCase]
    """In the order in which images are generated."""
    networks: Mapping[str, "Framing | None"]
    """The networks that read the generated images."""
    references: Mapping[str, ImagesToRead]
    """Real images, by the name under which their features are passed to `score`."""

    def __init__(self, protocol: Protocol, settings: BenchmarkSettings) -> None: ...

    def in_words(self) -> "Benchmark | None":
        """The same cases as text-only prompts; None if that is not possible."""
        ...

    def score(
        self, files: Sequence[Path], features: Mapping[str, Features], real: Mapping[str, Mapping[str, Features]]
    ) -> list[dict[str, Any]]:
        """Rows of scores for one model, each with its `set`.

        `files` are its images, case after case; `features` those of the images by network, `real` those of the
        references by name and network.
        """
        ...

    def shown(self, rows: int) -> list[int]:
        """Numbers of the cases for the contact sheet, chosen by a fixed rule and not cherry-picked."""
        ...

    def page(self, rows: Sequence[Mapping[str, Any]]) -> ScorePage:
        """How the rows of all models are presented."""
        ...


class BenchmarkDefaults:
    """What most benchmarks share. A subclass passes its cases to `__init__` and defines `score`."""

    weights: Mapping[str, str] = {}
    networks: Mapping[str, "Framing | None"] = {}
    references: Mapping[str, ImagesToRead] = {}

    def __init__(self, protocol: Protocol, cases: Sequence[BenchmarkCase]) -> None:
        self.protocol = protocol
        self.cases = cases
        self.data_digest = hashlib.sha256(repr([(case.group, case.text) for case in cases]).encode()).hexdigest()[:16]

    def in_words(self) -> "Benchmark | None":
        """Not possible."""
        return None

    def shown(self, rows: int) -> list[int]:
        """The first cases."""
        return list(range(min(rows, len(self.cases))))

    def page(self, rows: Sequence[Mapping[str, Any]]) -> ScorePage:
        """Every score of every row, by name."""
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
    """Numbers of cases for a sheet: group after group, a different case of each."""
    each = total // groups
    numbers = [group * each + (group + turn) % each for turn in range(each) for group in range(groups)]
    return numbers[:rows]
