"""DreamBench's three scores: how much an image shows the subject (DINO, CLIP-I) and follows the text (CLIP-T).

All are cosine similarities in [-1, 1]; some papers report them times 100, we do not.
Letters: N generated images, R real photos, S sentences, D feature dimensions.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kosmosg.eval.metrics.fid import Doubles, Floats, cosine, unit
from kosmosg.eval.protocol import CLIP, DINO
from kosmosg.eval.statistics import Estimate, bootstrap

SCORES = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T"}
"""Key and title of each score."""


def image_scores(
    generated: Mapping[str, Floats],
    real: Mapping[str, Floats],
    sentences: Floats,
    photos_of: Sequence[Sequence[int]],
    sentence_of: Sequence[int],
) -> dict[str, Doubles]:
    """Each score of each image, (N,).

    `generated` and `real` hold features by network, (N, D) and (R, D); `sentences (S, D)` are CLIP's. `photos_of[n]`
    are the rows of the real photos that image n is compared with: its score is the mean over them.
    """
    return {
        "dino": _likeness(generated[DINO], real[DINO], photos_of),
        "clip_i": _likeness(generated[CLIP], real[CLIP], photos_of),
        "clip_t": cosine(generated[CLIP], sentences[np.asarray(sentence_of)]),
    }


def _likeness(generated: Floats, real: Floats, photos_of: Sequence[Sequence[int]]) -> Doubles:
    # A mean of cosines is the product with the mean of the directions.
    directions = unit(real)
    wanted = np.stack([directions[list(photos)].mean(axis=0) for photos in photos_of])
    products: Doubles = np.einsum("nd,nd->n", unit(generated), wanted)
    return products


def overall(scores: Mapping[str, Doubles], subjects: Sequence[str]) -> dict[str, Estimate]:
    """Mean of each score over all images, with a bootstrap interval over subjects."""
    return {name: bootstrap(values, subjects) for name, values in scores.items()}


def by_subject(scores: Mapping[str, Doubles], subjects: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean of each score over the images of each subject, in the order of their first images."""
    names = np.asarray(subjects)
    return {
        subject: {name: float(values[names == subject].mean()) for name, values in scores.items()}
        for subject in dict.fromkeys(subjects)
    }
