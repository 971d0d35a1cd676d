"""Pixel art of the toy world: six shapes, five patterns, eight backgrounds, on 32 x 32 pixels.

The pixels behind `kosmosg.toyworld.scene`; users import from there. Every sprite is looked up in a table of label
images (one per shape, pattern and radius), so that rendering a batch is a handful of numpy gathers: several thousand
images a second on one core. Hard edges throughout: a pixel is background, ink, main colour or white.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

SIZE = 32  # pixels, side of an image
KINDS = ("ball", "gem", "tree", "fish", "cat", "house")
PATTERNS = ("striped", "barred", "spotted", "split", "cored")
GROUNDS = ("grass", "snow", "sand", "sea")
RADII = (6, 8, 11)  # pixels from the centre to the ink line, which belongs to the sprite

_NOTHING, _INK, _MAIN, _WHITE = 0, 1, 2, 3
_HORIZON = 20  # first row of the ground
_INK_RGB = (24, 16, 28)
_SKY_RGB = {False: (152, 206, 240), True: (18, 18, 48)}
_STAR_RGB = (236, 230, 180)
_STARS = ((2, 3), (4, 13), (1, 22), (6, 29), (9, 5), (11, 17), (8, 24), (14, 10), (15, 28), (17, 2))  # row, column
_GROUND_RGB = {
    ("grass", False): (62, 160, 60),
    ("snow", False): (236, 242, 250),
    ("sand", False): (226, 200, 126),
    ("sea", False): (30, 92, 176),
    ("grass", True): (22, 66, 26),
    ("snow", True): (128, 134, 150),
    ("sand", True): (96, 80, 46),
    ("sea", True): (10, 38, 72),
}

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def hue_to_rgb(hue: npt.ArrayLike, saturation: float = 0.85, value: float = 0.95) -> Bytes:
    """Hues in degrees, any shape (...,), to colours (..., 3) in 0..255 by the usual HSV formula."""
    sector = (np.asarray(hue, dtype=np.float64)[..., None] / 60.0 + np.array([5.0, 3.0, 1.0])) % 6.0
    level: Floats = value * (1.0 - saturation * np.clip(np.minimum(sector, 4.0 - sector), 0.0, 1.0))
    colors: Bytes = np.round(255.0 * level).astype(np.uint8)
    return colors


def rasterize(
    ground: Ints, night: Bools, kind: Ints, pattern: Ints, radius: Ints, x: Ints, y: Ints, hue: Floats, present: Bools
) -> Bytes:
    """Render B scenes of up to E entities: indices and pixels, (B,) or (B, E), to images (B, 32, 32, 3)."""
    canvas = _backgrounds()[ground, night.astype(np.int64)].copy()
    for entity in range(kind.shape[1]):
        label = place(
            kind[:, entity], pattern[:, entity], radius[:, entity], x[:, entity], y[:, entity], present[:, entity]
        )
        canvas[label == _INK] = _INK_RGB
        canvas[label == _WHITE] = (255, 255, 255)
        main = label == _MAIN
        canvas[main] = np.broadcast_to(hue_to_rgb(hue[:, entity])[:, None, None], canvas.shape)[main]
    return canvas


def place(kind: Ints, pattern: Ints, radius: Ints, x: Ints, y: Ints, present: Bools) -> Bytes:
    """Label images (B, 32, 32) of one entity each: 0 outside, 1 ink, 2 main colour, 3 white."""
    table = _sprites()
    reach = table.shape[-1] // 2
    rows = np.arange(SIZE)[None, :] - y[:, None] + reach  # (B, 32) row of the sprite under each row of the image
    columns = np.arange(SIZE)[None, :] - x[:, None] + reach
    inside = ((rows >= 0) & (rows <= 2 * reach))[:, :, None] & ((columns >= 0) & (columns <= 2 * reach))[:, None, :]
    inside &= present[:, None, None]
    size = np.searchsorted(RADII, radius)
    label: Bytes = table[
        kind[:, None, None],
        pattern[:, None, None],
        size[:, None, None],
        np.clip(rows, 0, 2 * reach)[:, :, None],
        np.clip(columns, 0, 2 * reach)[:, None, :],
    ]
    return np.where(inside, label, np.uint8(_NOTHING))


@lru_cache(maxsize=1)
def _backgrounds() -> Bytes:
    """(ground, night, 32, 32, 3)."""
    canvas = np.empty((len(GROUNDS), 2, SIZE, SIZE, 3), dtype=np.uint8)
    for index, ground in enumerate(GROUNDS):
        for night in (False, True):
            canvas[index, int(night)] = _SKY_RGB[night]
            canvas[index, int(night), _HORIZON:] = _GROUND_RGB[ground, night]
            if night:
                for row, column in _STARS:
                    canvas[index, 1, row, column] = _STAR_RGB
    return canvas


@lru_cache(maxsize=1)
def _sprites() -> Bytes:
    """Label images (kind, pattern, radius, side, side), the sprite's centre in the middle."""
    reach = max(RADII)
    side = 2 * reach + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    table = np.zeros((len(KINDS), len(PATTERNS), len(RADII), side, side), dtype=np.uint8)
    for size, radius in enumerate(RADII):
        inner = radius - 1.0  # the ink line takes the last pixel
        for k, kind in enumerate(KINDS):
            body, ink = _shape(kind, dx, dy, inner)
            line = np.zeros_like(body)
            line[1:] |= body[:-1]
            line[:-1] |= body[1:]
            line[:, 1:] |= body[:, :-1]
            line[:, :-1] |= body[:, 1:]
            for p, pattern in enumerate(PATTERNS):
                # Patterns sit on the middle of the body, which for a fish and a tree is not the middle of the sprite.
                right = -round(0.25 * inner) if kind == "fish" else 0
                down = round(0.2 * inner) if kind == "tree" else 0
                label = np.where(_is_white(pattern, dx - right, dy - down, inner), _WHITE, _MAIN)
                table[k, p, size] = np.where(ink | (line & ~body), _INK, np.where(body, label, _NOTHING))
    return table


def _shape(kind: str, dx: Floats, dy: Floats, a: float) -> tuple[Bools, Bools]:
    """Body and ink marks (eyes, doors, trunks) of a shape that reaches `a` pixels from the centre."""
    width = np.abs(dx)
    none = np.zeros(dx.shape, dtype=bool)
    if kind == "ball":
        return dx**2 + dy**2 <= (a + 0.3) ** 2, none
    if kind == "gem":
        return width + np.abs(dy) <= a + 0.5, none
    if kind == "tree":
        crown = (dy >= -a) & (dy <= 0.55 * a) & (width <= (dy + a) * 0.66 + 0.4)
        trunk = (dy > 0.5 * a) & (dy <= a + 0.5) & (width <= max(1.0, 0.22 * a))
        return crown, trunk & ~crown
    if kind == "fish":
        body = ((dx + 0.25 * a) / (0.8 * a)) ** 2 + (dy / (0.68 * a)) ** 2 <= 1.0
        tail = (dx >= 0.35 * a) & (dx <= a) & (np.abs(dy) <= (dx - 0.3 * a) * 1.05)
        eye = (np.abs(dx + 0.65 * a) <= 0.11 * a) & (np.abs(dy + 0.2 * a) <= 0.11 * a)
        return body | tail, eye
    if kind == "cat":
        head = dx**2 + (dy - 0.18 * a) ** 2 <= (0.86 * a) ** 2
        ears = (dy >= -a) & (dy <= 0.0) & (np.abs(width - 0.68 * a) <= (dy + a) * 0.45 + 0.3)
        eyes = (np.abs(width - 0.4 * a) <= 0.11 * a) & (np.abs(dy - 0.02 * a) <= 0.15 * a)
        return head | ears, eyes
    roof = (dy >= -a) & (dy <= -0.1 * a) & (width <= (dy + a) * 1.15 + 0.4)
    walls = (dy > -0.1 * a) & (dy <= a) & (width <= 0.76 * a)
    door = (width <= 0.2 * a) & (dy >= 0.5 * a) & (dy <= a)
    return (roof | walls) & (width <= a), door


def _is_white(pattern: str, dx: Floats, dy: Floats, a: float) -> Bools:
    """Where the second colour goes; symmetric about the centre except for `split`."""
    across, down = np.abs(dx) / (a + 0.5), np.abs(dy) / (a + 0.5)
    if pattern == "striped":
        return (across >= 0.2) & (across < 0.6)
    if pattern == "barred":
        return (down >= 0.2) & (down < 0.6)
    if pattern == "spotted":
        x, y = np.abs(dx) / a, np.abs(dy) / a  # four spots: above, below, left and right of the middle
        return ((x <= 0.22) & (np.abs(y - 0.65) <= 0.2)) | ((y <= 0.22) & (np.abs(x - 0.65) <= 0.2))
    if pattern == "split":
        return dy > 0.0
    return dx**2 + dy**2 <= (0.46 * a) ** 2
