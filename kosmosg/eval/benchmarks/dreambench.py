"""DreamBench: how much an image resembles its subject (DINO, CLIP-I) and follows the text (CLIP-T)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kosmosg.eval.baselines import DREAMBENCH, LABEL
from kosmosg.eval.benchmarks.base import (
    BenchmarkCase,
    BenchmarkSettings,
    Features,
    ImagesToRead,
    ScorePage,
    spread_out,
)
from kosmosg.eval.benchmarks.dreambench_data import SUBJECTS, digest_cases, make_cases, real_photos
from kosmosg.eval.features.preprocessing import Framing
from kosmosg.eval.metrics import similarity
from kosmosg.eval.protocol import ALL_PHOTOS, CLIP, DINO, Protocol
from kosmosg.eval.statistics import flat


class DreamBench:
    """The benchmark; see `kosmosg.eval.benchmarks.base.Benchmark`."""

    weights: Mapping[str, str] = {}

    def __init__(self, protocol: Protocol, settings: BenchmarkSettings) -> None:
        folder = settings.require_data(protocol)
        self.asked = make_cases(folder, protocol.count, settings.subjects)
        subjects = {case.subject.name: case.subject for case in self.asked}
        if len(subjects) != len(SUBJECTS):
            protocol = protocol.changed(subset=f"{len(subjects)} subjects")
        if protocol.reference == ALL_PHOTOS:
            self.photos = {name: real_photos(folder, subject) for name, subject in subjects.items()}
        else:
            self.photos = {case.subject.name: [case.photo] for case in self.asked}
        self.protocol, self.subjects = protocol, list(subjects)
        self.data_digest = digest_cases(self.asked, self.photos)
        self.clip = settings.source(protocol, CLIP)
        self.cases = [BenchmarkCase(case.subject.name, case.text, (case.photo,)) for case in self.asked]
        self.networks: Mapping[str, Framing | None] = {DINO: None, CLIP: None}
        self.real = list(dict.fromkeys(photo for photos in self.photos.values() for photo in photos))
        self.references = {"the real photos": ImagesToRead(tuple(self.real), self.networks)}
        self._words: Features | None = None

    def in_words(self) -> None:
        """Not possible: the subject is given by its photo alone."""
        return None

    def score(
        self, files: Sequence[Path], features: Mapping[str, Features], real: Mapping[str, Mapping[str, Features]]
    ) -> list[dict[str, Any]]:
        """Over all images, then by subject."""
        sentences = list(dict.fromkeys(case.sentence for case in self.asked))
        if self._words is None:
            from kosmosg.eval.features.clip import ClipTexts

            self._words = ClipTexts(self.clip).texts(sentences)
        asked = [case for case in self.asked for _ in range(self.protocol.pictures)]
        row_of = {photo: row for row, photo in enumerate(self.real)}
        scores = similarity.image_scores(
            features,
            real["the real photos"],
            self._words,
            photos_of=[[row_of[photo] for photo in self.photos[case.subject.name]] for case in asked],
            sentence_of=[sentences.index(case.sentence) for case in asked],
        )
        names = [case.subject.name for case in asked]
        overall = {"set": "all", "pictures": len(asked)} | flat(similarity.overall(scores, names))
        return [overall] + [
            {"set": subject, "pictures": names.count(subject)} | means
            for subject, means in similarity.by_subject(scores, names).items()
        ]

    def shown(self, rows: int) -> list[int]:
        """Subject after subject, a different prompt of each."""
        return spread_out(len(self.cases), len(self.subjects), rows)

    def page(self, rows: Sequence[Mapping[str, Any]]) -> ScorePage:
        """The three scores with intervals over subjects, then by subject, and published results."""
        overall = [row for row in rows if row["set"] == "all"]
        of_subjects = sorted((row for row in rows if row["set"] != "all"), key=lambda row: str(row["set"]))
        titles = list(similarity.SCORES.values())
        published = [
            [row.method, row.base, row.references, LABEL, *map(_number, (row.dino, row.clip_i, row.clip_t))]
            for row in DREAMBENCH
        ]
        return ScorePage(
            headlines={row["variant"]: _told(row) for row in overall},
            reading=(
                "Mean cosines over all images. DINO and CLIP-I compare with real photos of the subject, CLIP-T with "
                "the official sentence. In brackets the 95 % interval over subjects: what another choice of subjects "
                "could have given."
            ),
            scores=(
                ["model", "protocol", "images", *titles],
                [
                    [
                        row["variant"],
                        row["protocol"],
                        str(row["pictures"]),
                        *(_interval(row, n) for n in similarity.SCORES),
                    ]
                    for row in overall
                ],
            ),
            further={
                "By subject": (
                    ["subject", "model", "protocol", "images", *titles],
                    [
                        [row["set"], row["variant"], row["protocol"], str(row["pictures"])]
                        + [f"{row[name]:.3f}" for name in similarity.SCORES]
                        for row in of_subjects
                    ],
                )
            },
            published=(["method", "decoder", "photos given", "protocol", *titles], published),
        )


def _told(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{title} {_interval(row, name)}" for name, title in similarity.SCORES.items())


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
