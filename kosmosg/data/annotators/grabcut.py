"""Segments the subject of a photo without any weights: GrabCut, started from where subjects usually are.

GrabCut (Rother et al. 2004) separates two colour mixtures along edges, and is only as good as its initial guess. Ours
is an ellipse, determined half by where subjects usually are (in the middle, a little low) and half by where the image
differs from its own border (minimum barrier distance, Zhang et al. 2015). The border itself is background, except at
the bottom, where animals and people are often cut off. On the 30 photos of DreamBench about 25 masks are good; it fails
if subject and background have the same colours (a white dog on a white wall).
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from kosmosg.data.annotators.base import EntityMask, NoSettings, Sample

WORK = 320  # pixels of the longer side while segmenting; more gives no better borders and quadratic cost
ITERATIONS = 5
BORDER = 0.03  # of the width: surely background
CORE = 0.08  # squared radius, as part of the ellipse's: surely the subject
FAINT = 12.0  # Lab units, summed over channels: smaller differences do not count as contrast
PAIR = 0.3  # part of the main piece's weight that makes another piece belong to the subject
HABIT = (0.5, 0.52, 0.36, 0.40)  # centre x, y and half axes x, y, as parts of width and height

Array = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


class GrabCutSegmenter:
    """Cuts out the one subject of a photo. With several entities the first gets the cut and the others get nothing,
    since colours alone cannot tell which is which."""

    fills = "masks"
    settings = NoSettings
    hint = ""
    name = f"GrabCut (opencv {cv2.__version__})"

    def __init__(self) -> None:
        cv2.setNumThreads(1)  # the workers are the parallelism

    def __call__(self, samples: Sequence[Sample]) -> list[list[EntityMask]]:
        answers = []
        for sample in samples:
            pixels = np.asarray(sample.image)[:, :, ::-1]
            nothing = np.zeros(pixels.shape[:2], dtype=np.uint8)
            answers.append(
                [EntityMask(subject(pixels) if index == 0 else nothing) for index in range(len(sample.spans))]
            )
        return answers


def subject(pixels: Array) -> Array:
    """Probability (H, W), 0 to 255, that a pixel of a BGR image (H, W, 3) belongs to the subject."""
    height, width = pixels.shape[:2]
    scale = min(1.0, WORK / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    top, bottom = letterbox(small)
    found = np.zeros(small.shape[:2], dtype=bool)
    found[top:bottom] = cut(np.ascontiguousarray(small[top:bottom]))
    mask = tidy(found).astype(np.uint8) * 255
    enlarged: Array = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
    return enlarged


def cut(pixels: Array) -> Bools:
    """GrabCut of a BGR image, started from the ellipse of `first_guess`; empty if nothing stands out."""
    weight = contrast(pixels)
    if weight.max() < 0.1:
        return np.zeros(pixels.shape[:2], dtype=bool)
    state = first_guess(weight)
    cv2.setRNGSeed(0)  # its mixtures start from k-means; a fixed seed makes a build repeatable
    try:
        cv2.grabCut(pixels, state, None, np.zeros((1, 65)), np.zeros((1, 65)), ITERATIONS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        # An image of one colour leaves one mixture without any pixel: there is no subject.
        return np.zeros(pixels.shape[:2], dtype=bool)
    return np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD))


def first_guess(weight: Floats) -> Array:
    """GrabCut's initial mask (H, W): sure background at the border, probable subject in an ellipse, sure in its core.

    `weight` is how much every pixel stands out (`contrast`).
    """
    height, width = weight.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    weight = weight / max(float(weight.sum()), 1e-6)
    centre_x, centre_y = float((weight * x).sum()), float((weight * y).sum())
    spread_x = float(np.sqrt((weight * (x - centre_x) ** 2).sum()))
    spread_y = float(np.sqrt((weight * (y - centre_y) ** 2).sum()))
    seen = (centre_x, centre_y, 2 * spread_x, 2 * spread_y)  # two standard deviations hold most of a blob
    usual = (HABIT[0] * width, HABIT[1] * height, HABIT[2] * width, HABIT[3] * height)
    at_x, at_y, half_x, half_y = ((a + b) / 2 for a, b in zip(seen, usual, strict=True))
    radius = ((x - at_x) / max(half_x, 1)) ** 2 + ((y - at_y) / max(half_y, 1)) ** 2
    state = np.where(radius < 1, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    state[radius < CORE] = cv2.GC_FGD
    edge = max(2, int(BORDER * width))
    state[:edge] = state[:, :edge] = state[:, -edge:] = cv2.GC_BGD
    state[-max(1, edge // 2) :] = cv2.GC_BGD
    return state


def contrast(pixels: Array) -> Floats:
    """How much every pixel differs from the border along its smoothest path there, weighted towards the middle.

    (H, W), 0 to 1.
    """
    height, width = pixels.shape[:2]
    smooth = cv2.cvtColor(cv2.bilateralFilter(pixels, 7, 40, 7), cv2.COLOR_BGR2LAB)
    distance = cv2.resize(barrier(cv2.resize(smooth, (128, 128), interpolation=cv2.INTER_AREA)), (width, height))
    distance = cv2.GaussianBlur(distance, (0, 0), max(width / 100, 0.5))
    distance = np.clip(distance / max(float(np.percentile(distance, 98)), FAINT), 0, 1)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    off_x, off_y = (x - width / 2) / (0.3 * width), (y - 0.52 * height) / (0.33 * height)
    middle = np.exp(-(off_x**2 + off_y**2) / 2)
    weighted: Floats = (distance * middle).astype(np.float32)
    return weighted


def barrier(colours: Array, sweeps: int = 3) -> Floats:
    """Minimum barrier distance to the border, (H, W): over all paths to it, the smallest colour range on the path.

    Sweeps over rows and columns, back and forth, a whole line at a time; three sweeps give a good approximation.
    """
    values = colours.astype(np.float32)
    distance = np.full(values.shape[:2], np.inf, dtype=np.float32)
    distance[0] = distance[-1] = distance[:, 0] = distance[:, -1] = 0
    highest, lowest = values.copy(), values.copy()
    for sweep in range(sweeps):
        for axis in (0, 1):
            views = (np.moveaxis(array, axis, 0) for array in (values, distance, highest, lowest))
            _sweep(sweep % 2 == 1, *views)
    return distance


def _sweep(backwards: bool, values: Floats, distance: Floats, highest: Floats, lowest: Floats) -> None:
    """Route every line's paths through the line before it where that is better. Writes into its arguments."""
    count = len(values)
    order = range(count - 2, -1, -1) if backwards else range(1, count)
    for line in order:
        before = line + 1 if backwards else line - 1
        high, low = np.maximum(highest[before], values[line]), np.minimum(lowest[before], values[line])
        cost = (high - low).sum(axis=1)
        better = cost < distance[line]
        distance[line][better] = cost[better]
        highest[line][better] = high[better]
        lowest[line][better] = low[better]


def letterbox(pixels: Array, tolerance: int = 12) -> tuple[int, int]:
    """First and last row (exclusive) of the image between two bars of one colour; all rows if there are no bars."""
    height = len(pixels)
    rows = pixels.reshape(height, -1).astype(np.int16)
    top, bottom = _bar(rows, tolerance), _bar(rows[::-1], tolerance)
    if not top or not bottom or height - top - bottom < height // 3:
        return 0, height
    return top, height - bottom


def _bar(rows: NDArray[np.int16], tolerance: int) -> int:
    plain = np.abs(rows - rows[0].mean()).max(axis=1) < tolerance
    return int(plain.argmin()) if not plain.all() else 0


def tidy(mask: Bools) -> Bools:
    """The subject without specks and holes: the connected piece with the most pixels near the middle, and those that
    come close to it (the second lens of a pair of glasses whose bridge is too thin to be seen)."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, pieces = cv2.connectedComponents(opened)
    if count <= 1:
        return np.asarray(opened > 0)
    height, width = mask.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    middle = np.exp(-(((x - width / 2) / (0.35 * width)) ** 2 + ((y - height / 2) / (0.35 * height)) ** 2) / 2)
    weights = np.bincount(pieces.ravel(), weights=middle.ravel(), minlength=count)[1:]
    kept = np.isin(pieces, 1 + np.flatnonzero(weights >= PAIR * weights.max())).astype(np.uint8)
    count, holes, boxes, _ = cv2.connectedComponentsWithStats(1 - kept)
    for hole in range(1, count):
        left, top, across, down, area = boxes[hole]
        inside = left > 0 and top > 0 and left + across < width and top + down < height
        # A large hole is the view through a handle or between legs; a small one is a highlight on the subject.
        if inside and area < 0.02 * height * width:
            kept[holes == hole] = 1
    return np.asarray(kept > 0)
