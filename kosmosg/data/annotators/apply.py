"""Run one annotator over samples in batches, so that a bad sample affects only itself.

Samples of like size share a batch where the annotator says how large a sample is (`SizedAnnotator`): the short ones
are then not padded to the longest, and answers come back in the order of the samples all the same.

A batch that fails is retried sample by sample: samples that fail alone are rejected with a reason, the others continue.
A reason that begins with "unexpected" indicates a bug or a problem of the machine, so the sample is retried next time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from kosmosg.data.annotators.base import Annotator, Rejection, Sample, SizedAnnotator
from kosmosg.errors import MACHINE_ERRORS, ImageError, KosmosGError, UnavailableError

UNEXPECTED = "unexpected"

_One = TypeVar("_One")


def apply(annotator: Annotator, samples: Sequence[Sample], batch_size: int) -> list[Any]:
    """The annotator's answer or a `Rejection` for every sample, in order."""
    answers: list[Any] = [None] * len(samples)
    order: Sequence[int] = range(len(samples))
    if isinstance(annotator, SizedAnnotator):
        order = largest_first([annotator.size(sample) for sample in samples])
    for batch in batches(order, batch_size):
        given = _answers(annotator, [samples[index] for index in batch])
        for index, answer in zip(batch, given, strict=True):
            answers[index] = answer
    return answers


def largest_first(sizes: Sequence[Any]) -> list[int]:
    """The order of falling sizes, so that a batch too large for the memory is met at once, not after hours."""
    return sorted(range(len(sizes)), key=lambda index: sizes[index], reverse=True)


def batches(values: Sequence[_One], size: int) -> Iterator[Sequence[_One]]:
    """Parts of at most `size` values, in order."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


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
    """An exception as a `Rejection`: a reason and a sentence.

    Raises it again where the machine is at fault, not the row: a store that is away, a full disk.
    """
    if isinstance(error, UnavailableError) or (isinstance(error, OSError) and error.errno in MACHINE_ERRORS):
        raise error
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImageError):
        return Rejection("unreadable", message)
    if isinstance(error, KosmosGError):
        return Rejection(type(error).__name__.removesuffix("Error").lower(), message)
    return Rejection(f"{UNEXPECTED}-{type(error).__name__}", message)
