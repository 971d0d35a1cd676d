"""The toy world: a procedural world of images and captions in which every claim about the model can be measured.

A scene holds one to three entities on one of eight backgrounds. An entity is a shape, a pattern and one *continuous*
hue; captions only know eight colour words, so an image of a subject says more about it than any caption can. One
seventh of all (shape, colour word, pattern) combinations is held out: no training stage ever sees them.

    rng = np.random.default_rng(0)
    scene = sample_scene(rng, entities=2)
    pixels = render([scene])[0]                    # (32, 32, 3) uint8
    text, spans = caption(scene)                   # "a striped red ball and a spotted blue cat in the snow at night"

Everything is a pure function of the generator that is passed in, so a seed identifies a dataset.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from kosmosg.errors import DataError
from kosmosg.toyworld.render import GROUNDS, KINDS, PATTERNS, RADII, SIZE, Bools, Bytes, Ints, place, rasterize

__all__ = [
    "COLORS",
    "EDIT_KINDS",
    "GROUNDS",
    "KINDS",
    "LAYOUTS",
    "PATTERNS",
    "PLACES",
    "SIZE",
    "SIZES",
    "Bools",
    "Bytes",
    "CaptionWords",
    "EditKind",
    "Ints",
    "Scene",
    "SceneCaption",
    "SceneEdit",
    "SceneEntity",
    "caption",
    "crop",
    "describe",
    "is_held_out",
    "masks",
    "reference",
    "render",
    "sample_edit",
    "sample_entity",
    "sample_scene",
    "sample_words",
    "vocabulary",
]

COLORS = ("red", "orange", "lime", "green", "cyan", "blue", "purple", "pink")  # centred on 0, 45, ... 315 degrees
SIZES = {6: "small", 8: "", 11: "large"}  # radius in pixels -> word; entities that share an image are always small
PLACES = {"grass": "on the grass", "snow": "in the snow", "sand": "on the sand", "sea": "at sea"}
EditKind = Literal["ground", "time", "color", "pattern", "kind"]  # what an edit changes
EDIT_KINDS: tuple[EditKind, ...] = ("ground", "ground", "time", "color", "pattern", "kind")  # places twice as often

# Centres (x, y) in pixels of each arrangement; every entity is jittered by up to one pixel and none overlaps another.
LAYOUTS = {
    "alone": ((16, 17),),
    "beside": ((8, 17), (23, 17)),
    "above": ((16, 8), (16, 23)),
    "pyramid": ((16, 8), (8, 23), (23, 23)),
}
_LAYOUTS_BY_COUNT = {1: ("alone",), 2: ("beside", "beside", "above"), 3: ("pyramid",)}
_COUNT_WEIGHTS = (0.3, 0.4, 0.3)
_JOINTS = {"alone": ("",), "beside": ("", " and "), "above": ("", " above "), "pyramid": ("", " above ", " and ")}


@dataclass(frozen=True)
class SceneEntity:
    """One subject at one place: what it is (kind, hue in degrees, pattern) and where (centre and radius in pixels)."""

    kind: str
    hue: float
    pattern: str
    x: int
    y: int
    radius: int

    @property
    def color(self) -> str:
        """The nearest of the eight colour words."""
        return COLORS[round(self.hue / 45.0) % len(COLORS)]

    @property
    def held_out(self) -> bool:
        """Whether this combination of shape, colour word and pattern is kept from all training."""
        return is_held_out(self.kind, self.color, self.pattern)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Square crop (left, top, right, bottom; right and bottom exclusive) with a margin of one pixel."""
        reach = self.radius + 1
        return (
            max(self.x - reach, 0),
            max(self.y - reach, 0),
            min(self.x + reach + 1, SIZE),
            min(self.y + reach + 1, SIZE),
        )


@dataclass(frozen=True)
class Scene:
    """What an image shows; `entities` stand in the order of the layout's places, which a caption follows."""

    ground: str
    night: bool
    layout: str
    entities: tuple[SceneEntity, ...]

    def to_json(self) -> str:
        """One line of JSON; `from_json` is its inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """Read what `to_json` wrote; anything else raises `DataError`."""
        try:
            raw: dict[str, Any] = json.loads(text)
            scene = cls(**{**raw, "entities": tuple(SceneEntity(**entity) for entity in raw["entities"])})
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"not a scene of the toy world: {text[:80]!r} ({error})") from error
        if scene.layout not in LAYOUTS or len(LAYOUTS[scene.layout]) != len(scene.entities):
            raise DataError(
                f"layout {scene.layout!r} with {len(scene.entities)} entities; known layouts: {list(LAYOUTS)}"
            )
        return scene


class CaptionWords(NamedTuple):
    """Which optional words a caption uses for an entity."""

    size: bool = True
    pattern: bool = True
    color: bool = True


class SceneCaption(NamedTuple):
    """A caption and, for every entity, the character span (start, end) of its noun phrase, article included."""

    text: str
    spans: tuple[tuple[int, int], ...]


class SceneEdit(NamedTuple):
    """A scene, what to change in words, and the scene afterwards (every entity keeps its place)."""

    before: Scene
    instruction: str
    after: Scene


def is_held_out(kind: str, color: str, pattern: str) -> bool:
    """The held-out rule: one seventh of the combinations, spread so that every single word occurs in training."""
    return (KINDS.index(kind) + 3 * COLORS.index(color) + 2 * PATTERNS.index(pattern)) % 7 == 0


def sample_scene(
    rng: np.random.Generator, held_out: bool = False, entities: int | None = None, layout: str | None = None
) -> Scene:
    """Sample a scene. Training scenes (`held_out=False`) have no held-out subjects, held-out scenes only such."""
    if layout is None:
        count = int(rng.choice(3, p=_COUNT_WEIGHTS)) + 1 if entities is None else entities
        if count not in _LAYOUTS_BY_COUNT:
            raise DataError(f"a scene holds 1 to {len(_LAYOUTS_BY_COUNT)} entities, not {count}")
        layout = _pick(rng, _LAYOUTS_BY_COUNT[count])
    members = []
    for x, y in LAYOUTS[layout]:
        radius = RADII[rng.integers(len(RADII))] if layout == "alone" else RADII[0]
        dx, dy = rng.integers(-1, 2, size=2)
        members.append(sample_entity(rng, held_out, int(x + dx), int(y + dy), radius))
    return Scene(_pick(rng, GROUNDS), bool(rng.integers(2)), layout, tuple(members))


def sample_entity(rng: np.random.Generator, held_out: bool, x: int, y: int, radius: int) -> SceneEntity:
    """Sample a subject, inside or outside the held-out set, at the given position."""
    while True:  # six of seven draws succeed in training, one of seven when asked for held-out subjects
        hue = round(float(rng.uniform(0.0, 360.0)), 2)
        entity = SceneEntity(_pick(rng, KINDS), hue, _pick(rng, PATTERNS), x, y, radius)
        if entity.held_out == held_out:
            return entity


def sample_words(
    rng: np.random.Generator, scene: Scene, color: float = 0.8, pattern: float = 0.75
) -> tuple[CaptionWords, ...]:
    """Keep each entity's colour and pattern words independently with these probabilities; sizes are always kept."""
    draws = rng.random((len(scene.entities), 2))
    return tuple(CaptionWords(True, bool(second < pattern), bool(first < color)) for first, second in draws)


def caption(
    scene: Scene, words: Sequence[CaptionWords] | CaptionWords | None = None, place: bool = True
) -> SceneCaption:
    """Describe a scene, by default completely; pass one `CaptionWords`, or one per entity, to omit words.

    `place=False` omits the background. Entities are described from top to bottom and from left to right.
    """
    chosen = (
        [words or CaptionWords()] * len(scene.entities)
        if words is None or isinstance(words, CaptionWords)
        else list(words)
    )
    if len(chosen) != len(scene.entities):
        raise DataError(f"{len(chosen)} choices of words for {len(scene.entities)} entities")
    text, spans = "", []
    for entity, choice, joint in zip(scene.entities, chosen, _JOINTS[scene.layout], strict=True):
        text += joint
        phrase = describe(entity, choice if scene.layout == "alone" else choice._replace(size=False))
        spans.append((len(text), len(text) + len(phrase)))
        text += phrase
    if place:
        text += f" {PLACES[scene.ground]}" + (" at night" if scene.night else "")
    return SceneCaption(text, tuple(spans))


def describe(entity: SceneEntity, words: CaptionWords | None = None) -> str:
    """The noun phrase of one entity: "a large striped red ball"."""
    words = words or CaptionWords()
    parts = ["a", SIZES[entity.radius] if words.size else "", entity.pattern if words.pattern else ""]
    parts += [entity.color if words.color else "", entity.kind]
    text = " ".join(part for part in parts if part)
    return "an" + text[1:] if text[2:3] in "aeio" else text


def render(scenes: Sequence[Scene]) -> Bytes:
    """Render scenes: (B, 32, 32, 3), 0..255."""
    return rasterize(
        np.array([GROUNDS.index(scene.ground) for scene in scenes], dtype=np.int64),
        np.array([scene.night for scene in scenes], dtype=bool),
        **_columns(scenes),
    )


def masks(scene: Scene) -> Bools:
    """Which pixels belong to each entity: (entities, 32, 32)."""
    columns = _columns([scene])
    del columns["hue"]
    return place(**{name: column[0] for name, column in columns.items()})[: len(scene.entities)] > 0


def reference(scene: Scene, index: int, background: bool = False) -> Bytes:
    """An image of one entity alone: its square crop, on white unless `background`, enlarged to (32, 32, 3)."""
    pixels = render([scene])[0]
    if not background:
        pixels = np.where(masks(scene)[index][:, :, None], pixels, np.uint8(255))
    return crop(pixels, scene.entities[index].box)


def crop(pixels: Bytes, box: tuple[int, int, int, int], size: int = SIZE) -> Bytes:
    """Cut (left, top, right, bottom) out of (H, W, 3) and enlarge it to (size, size, 3) by nearest neighbour."""
    left, top, right, bottom = box
    rows = top + np.arange(size) * (bottom - top) // size
    columns = left + np.arange(size) * (right - left) // size
    return pixels[rows[:, None], columns[None, :]]


def sample_edit(rng: np.random.Generator, entities: int | None = None, kinds: Sequence[str] = EDIT_KINDS) -> SceneEdit:
    """Sample an editing example: another place or time, or one entity with another colour, pattern or shape.

    One of `kinds` is sampled; naming one twice makes it twice as frequent.
    """
    before = sample_scene(rng, entities=entities)
    index = int(rng.integers(len(before.entities)))
    target = before.entities[index]
    what = _pick(rng, kinds)
    if what == "ground":
        after = replace(before, ground=_pick(rng, [ground for ground in GROUNDS if ground != before.ground]))
        return SceneEdit(before, f"make it {PLACES[after.ground]}", after)
    if what == "time":
        return SceneEdit(
            before, "make it day" if before.night else "make it night", replace(before, night=not before.night)
        )
    same_kind = sum(entity.kind == target.kind for entity in before.entities)
    if same_kind > 1:  # "turn the ball red" must name one entity only
        return sample_edit(rng, entities, kinds)
    while True:
        drawn = sample_entity(rng, False, target.x, target.y, target.radius)
        if what == "color":
            changed = replace(target, hue=drawn.hue)
            done, text = changed.color != target.color, f"turn the {target.kind} {changed.color}"
        elif what == "pattern":
            changed = replace(target, pattern=drawn.pattern)
            done, text = changed.pattern != target.pattern, f"make the {target.kind} {changed.pattern}"
        else:
            changed = replace(target, kind=drawn.kind)
            done, text = changed.kind != target.kind, f"turn the {target.kind} into a {changed.kind}"
        if done and not changed.held_out:
            members = (*before.entities[:index], changed, *before.entities[index + 1 :])
            return SceneEdit(before, text, replace(before, entities=members))


def vocabulary() -> list[str]:
    """Every sentence fragment that the grammar can emit, for building tokenizers."""
    fragments = [f"a {size} {pattern} {color} {kind}" for size in ("small", "large") for pattern in PATTERNS
                 for color in COLORS for kind in KINDS]  # fmt: skip
    fragments += [f"an orange {kind} above {place} and at night" for kind in KINDS for place in PLACES.values()]
    fragments += [f"make it {place}" for place in (*PLACES.values(), "day", "night")]
    fragments += [f"turn the {kind} into a {other}" for kind in KINDS for other in KINDS]
    return fragments


def _columns(scenes: Sequence[Scene]) -> dict[str, Any]:
    """Entities of B scenes as arrays (B, E), absent ones marked in `present`."""
    width = max((len(scene.entities) for scene in scenes), default=1)
    shape = (len(scenes), width)
    columns: dict[str, Any] = {name: np.zeros(shape, dtype=np.int64) for name in ("kind", "pattern", "x", "y")}
    columns |= {"radius": np.full(shape, RADII[0]), "hue": np.zeros(shape), "present": np.zeros(shape, dtype=bool)}
    for row, scene in enumerate(scenes):
        for column, entity in enumerate(scene.entities):
            at = (row, column)
            columns["kind"][at], columns["pattern"][at] = KINDS.index(entity.kind), PATTERNS.index(entity.pattern)
            columns["x"][at], columns["y"][at] = entity.x, entity.y
            columns["radius"][at], columns["hue"][at], columns["present"][at] = entity.radius, entity.hue, True
    return columns


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
