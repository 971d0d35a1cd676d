"""DreamBench: thirty subjects, twenty-five prompts each, and how Kosmos-G words them.

The images and the official list of prompts are those of DreamBooth (github.com/google/dreambooth, CC BY 4.0; some
photos under the Unsplash licence). The images are not shipped; the prompts are written out below, so that a folder
without `prompts_and_classes.txt` can be used too.

    <folder>/<subject>/<nn>.jpg    or <folder>/dataset/<subject>/<nn>.jpg
    <folder>/prompts_and_classes.txt    optional

Which photo of a subject is the input follows Kosmos-G's evaluation
(scripts/remove_dreambench_multiimg.sh of xichenpan/Kosmos-G).
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kosmosg.errors import ConfigError, DataError
from kosmosg.prompt import PLACE

LIST = "prompts_and_classes.txt"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class DreamBenchSubject:
    """One of the thirty subjects."""

    name: str
    kind: str
    """Its class word in the prompts."""
    kept: str
    """Stem of the photo that is the input."""

    @property
    def live(self) -> bool:
        """Whether it is a cat or dog, which have prompts of their own."""
        return self.kind in ("cat", "dog")


_KEPT = {
    "backpack": "02", "backpack_dog": "02", "bear_plushie": "03", "berry_bowl": "02", "can": "01", "candle": "02",
    "cat": "04", "cat2": "02", "clock": "03", "colorful_sneaker": "01", "dog": "02", "dog2": "02", "dog3": "05",
    "dog5": "00", "dog6": "02", "dog7": "01", "dog8": "04", "duck_toy": "01", "fancy_boot": "02",
    "grey_sloth_plushie": "04", "monster_toy": "04", "pink_sunglasses": "04", "poop_emoji": "00", "rc_car": "03",
    "red_cartoon": "00", "robot_toy": "00", "shiny_sneaker": "01", "teapot": "04", "vase": "02", "wolf_plushie": "04",
}  # fmt: skip

_KINDS = {
    "backpack_dog": "backpack", "bear_plushie": "stuffed animal", "berry_bowl": "bowl", "cat2": "cat",
    "colorful_sneaker": "sneaker", "dog2": "dog", "dog3": "dog", "dog5": "dog", "dog6": "dog", "dog7": "dog",
    "dog8": "dog", "duck_toy": "toy", "fancy_boot": "boot", "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy", "pink_sunglasses": "glasses", "poop_emoji": "toy", "rc_car": "toy",
    "red_cartoon": "cartoon", "robot_toy": "toy", "shiny_sneaker": "sneaker", "wolf_plushie": "stuffed animal",
}  # fmt: skip

SUBJECTS = tuple(DreamBenchSubject(name, _KINDS.get(name, name), kept) for name, kept in _KEPT.items())

_PLACES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_CHANGES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")


@dataclass(frozen=True)
class DreamBenchPrompts:
    """The official sentences, with `{}` for the subject."""

    objects: tuple[str, ...]
    live: tuple[str, ...]

    def of(self, subject: DreamBenchSubject) -> tuple[str, ...]:
        return self.live if subject.live else self.objects


OFFICIAL = DreamBenchPrompts(
    objects=(
        *_PLACES,
        "a {} with a wheat field in the background",
        "a {} with a tree and autumn leaves in the background",
        "a {} with the Eiffel Tower in the background",
        "a {} floating on top of water",
        "a {} floating in an ocean of milk",
        "a {} on top of green grass with sunflowers around it",
        "a {} on top of a mirror",
        "a {} on top of the sidewalk in a crowded street",
        "a {} on top of a dirt road",
        "a {} on top of a white rug",
        *_CHANGES,
    ),
    live=(
        *_PLACES,
        "a {} wearing a red hat",
        "a {} wearing a santa hat",
        "a {} wearing a rainbow scarf",
        "a {} wearing a black top hat and a monocle",
        "a {} in a chef outfit",
        "a {} in a firefighter outfit",
        "a {} in a police outfit",
        "a {} wearing pink glasses",
        "a {} wearing a yellow shirt",
        "a {} in a purple wizard outfit",
        *_CHANGES,
    ),
)
"""DreamBooth's list, CC BY 4.0; what `prompts_and_classes.txt` says."""


@dataclass(frozen=True)
class DreamBenchCase:
    """One prompt for one subject."""

    subject: DreamBenchSubject
    sentence: str
    """The official sentence with the subject's word: what CLIP-T is measured against."""
    text: str
    """The prompt for the model, with `<i>` for the photo."""
    photo: Path


def ask(sentence: str, word: str = "") -> str:
    """The prompt for an official sentence, as in Kosmos-G: no leading article, and words before the subject are moved
    after it, because a word between article and image would describe the image. `word` comes before the image;
    with drop_object there is none.

    'a {} in the snow' -> '<i> in the snow', 'a red {}' -> '<i>, red'
    """
    before, _, after = sentence.partition("{}")
    quality = before.removeprefix("a ").strip()
    subject = f"{word} {PLACE}".strip()
    return f"{subject}{after}" + (f", {quality}" if quality else "")


def make_cases(folder: Path, count: int | None = None, subjects: Sequence[str] = ()) -> list[DreamBenchCase]:
    """Subject by subject, the first `count` prompts of each (None: all). Raises ConfigError, DataError."""
    listed = read_prompts(folder)
    chosen = choose(subjects)
    photos = {subject.name: kept_photo(folder, subject) for subject in chosen}
    return [
        DreamBenchCase(subject, sentence.format(subject.kind), ask(sentence), photos[subject.name])
        for subject in chosen
        for sentence in listed.of(subject)[:count]
    ]


def choose(names: Sequence[str]) -> list[DreamBenchSubject]:
    """Subjects by name, all of them for no names. Raises ConfigError."""
    known = {subject.name: subject for subject in SUBJECTS}
    for name in names:
        if name not in known:
            raise ConfigError(f"evaluate.subjects: DreamBench has no {name!r}; its subjects are {', '.join(known)}")
    return [known[name] for name in names] if names else list(SUBJECTS)


def root(folder: Path) -> Path:
    """Where the subjects' folders are: the folder itself, or `dataset` in it. Raises DataError if neither has them."""
    if not folder.is_dir():
        raise DataError(f"evaluate.data: there is no folder {folder}; give a copy of DreamBooth's `dataset`")
    for candidate in (folder, folder / "dataset"):
        if any((candidate / subject.name).is_dir() for subject in SUBJECTS):
            return candidate
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise DataError(
        f"evaluate.data: {folder} holds no subject of DreamBench (found: {found}); give the folder with "
        "backpack/, backpack_dog/, ... in it"
    )


def kept_photo(folder: Path, subject: DreamBenchSubject) -> Path:
    """The input photo of a subject. Raises DataError."""
    place = root(folder) / subject.name
    for suffix in SUFFIXES:
        if (place / f"{subject.kept}{suffix}").is_file():
            return place / f"{subject.kept}{suffix}"
    state = "has no" if place.is_dir() else "does not exist, so there is no"
    raise DataError(
        f"evaluate.data: {place} {state} {subject.kept}.jpg, the input of this subject; copy it from DreamBooth's "
        "dataset, or leave the subject out with evaluate.subjects"
    )


def real_photos(folder: Path, subject: DreamBenchSubject) -> list[Path]:
    """All photos of a subject, sorted by name; the input is one of them. Raises DataError."""
    kept_photo(folder, subject)
    return sorted(path for path in (root(folder) / subject.name).iterdir() if path.suffix.lower() in SUFFIXES)


def read_prompts(folder: Path) -> DreamBenchPrompts:
    """The sentences of the folder's official list, or else the built-in ones. Raises DataError if the list
    is damaged."""
    for path in (folder / LIST, folder / "dataset" / LIST):
        if path.is_file():
            return parse_prompts(path.read_text(encoding="utf-8"), path)
    return OFFICIAL


def parse_prompts(text: str, path: Path = Path(LIST)) -> DreamBenchPrompts:
    """The two lists of sentences; also checks that the class words are the known ones. Raises DataError."""
    head, objects, live = _thirds(text, path)
    words = dict(re.findall(r"^(\w+),([\w ]+)$", head, flags=re.MULTILINE))
    for subject in SUBJECTS:
        if words.get(subject.name) != subject.kind:
            raise DataError(
                f"{path}: the word for {subject.name} is {words.get(subject.name)!r}, DreamBench says {subject.kind!r}"
                "; take the official file"
            )
    return DreamBenchPrompts(_sentences(objects), _sentences(live))


def _thirds(text: str, path: Path) -> tuple[str, str, str]:
    parts = re.split(r"^(?:Object|Live Subject) Prompts\s*$", text, flags=re.MULTILINE)
    if len(parts) != 3 or not all(_sentences(part) for part in parts[1:]):
        raise DataError(
            f"{path} has not the parts 'Object Prompts' and 'Live Subject Prompts' with sentences; take the official "
            "file, or remove it to use the built-in list"
        )
    return parts[0], parts[1], parts[2]


def _sentences(part: str) -> tuple[str, ...]:
    return tuple(sentence.replace("{0} {1}", "{}") for sentence in re.findall(r"^'(.*)'\.format", part, re.MULTILINE))


def digest_cases(cases: Sequence[DreamBenchCase], reals: Mapping[str, Sequence[Path]]) -> str:
    """Digest of the data: sentences, prompts, and the bytes of every photo."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(f"{case.subject.name}\0{case.sentence}\0{case.text}\n".encode())
    inputs = {case.photo for case in cases}
    for path in sorted(inputs | {path for paths in reals.values() for path in paths}):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.parent.name}/{path.stem}\0{content}\0{path in inputs}\n".encode())
    return digest.hexdigest()[:16]
