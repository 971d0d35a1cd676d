"""Run one annotator over samples in batches, so that a bad sample affects only itself.

A batch that fails is retried sample by sample: samples that fail alone are rejected with a reason, the others continue.
A reason that begins with "unexpected" indicates a bug or a problem of the machine, so the sample is retried next time.
"""

from collections.abc import Sequence
from typing import Any

from kosmosg.data.annotators.base import Annotator, Rejection, Sample
from kosmosg.errors import ImageError, KosmosGError

UNEXPECTED = "unexpected"


def apply(annotator: Annotator, samples: Sequence[Sample], batch_size: int) -> list[Any]:
    """The annotator's answer or a `Rejection` for every sample, in order."""
    answers: list[Any] = []
    for start in range(0, len(samples), batch_size):
        answers += _answers(annotator, samples[start : start + batch_size])
    return answers


def _answers(annotator: Annotator, batch: Sequence[Sample]) -> list[Any]:
    try:
        answers = list(annotator(batch))
    except Exception as error:  # noqa: BLE001 - told in the quarantine table, with its type
        if len(batch) == 1:
            return [refusal(error)]
        return [answer for sample in batch for answer in _answers(annotator, [sample])]
    if len(answers) != len(batch):
        raise RuntimeError(f"annotator {annotator.name} gave {len(answers)} answers to {len(batch)} samples")
    return answers


def refusal(error: Exception) -> Rejection:
    """An exception as a `Rejection`: a reason and a sentence."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImageError):
        return Rejection("unreadable", message)
    if isinstance(error, KosmosGError):
        return Rejection(type(error).__name__.removesuffix("Error").lower(), message)
    return Rejection(f"{UNEXPECTED}-{type(error).__name__}", message)
