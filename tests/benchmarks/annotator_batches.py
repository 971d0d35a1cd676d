"""What batches of like size save: padding and CPU time of annotators, in the order of the source and by size.

    python tests/benchmarks/annotator_batches.py            # a minute on one core

Captions are real ones (Flickr30k's validation captions in `$KOSMOSG_SHARED/data`), images the photos of DreamBench, the
models tiny ones of random weights (`tests/tiny_annotators.py`): padding is that of real captions, in words, but the
times are mostly what surrounds a model. Nothing here passes or fails.
"""

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosmosg.data.annotators.apply import apply, batches, largest_first
from kosmosg.data.annotators.base import Annotator, EntitySpans, Sample
from kosmosg.data.annotators.blip2 import Blip2Captioner
from kosmosg.data.annotators.clipseg import ClipSegSegmenter
from kosmosg.data.annotators.language_model import LanguageEntityFinder
from kosmosg.data.annotators.noun_chunks import NounChunkFinder
from tests.tiny_annotators import tiny_blip2, tiny_clipseg, tiny_language_model

DATA = Path(os.environ.get("KOSMOSG_SHARED", "shared")) / "data"


class InOrder:
    """An annotator that does not say how large a sample is, so that batches are cut in the order of the samples."""

    def __init__(self, annotator: Any) -> None:
        self.name, self.annotator = annotator.name, annotator

    def __call__(self, samples: Sequence[Sample]) -> Sequence[Any]:
        return list(self.annotator(samples))


def padding(lengths: Sequence[int], batch_size: int, chunk: int, sized: bool) -> float:
    """Share of the tokens that a model sees which are padding; chunks are what a build hands to a step at once."""
    seen = 0
    for part in batches(lengths, chunk):
        order: Sequence[int] = largest_first(part) if sized else range(len(part))
        seen += sum(len(batch) * max(part[index] for index in batch) for batch in batches(order, batch_size))
    return 1 - sum(lengths) / seen


def spent(annotator: Any, samples: Sequence[Sample], batch_size: int, chunk: int) -> float:
    """CPU seconds per sample."""
    began = time.process_time()
    for part in batches(samples, chunk):
        apply(annotator, part, batch_size)
    return (time.process_time() - began) / len(samples)


def compared(annotator: Annotator, samples: Sequence[Sample], batch_size: int, chunk: int) -> str:
    """CPU time in the order of the source and by size, the smaller of two runs each."""
    ways = (InOrder(annotator), annotator)
    before, after = (min(spent(way, samples, batch_size, chunk) for _ in range(2)) for way in ways)
    return f"{1000 * before:.2f} -> {1000 * after:.2f} ms of CPU per sample"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=1014)
    parser.add_argument("--batch-size", type=int, default=16)
    given = parser.parse_args()
    with gzip.open(DATA / "captions" / "flickr30k.val.1.txt.gz", "rt", encoding="utf-8") as file:
        captions = [line.strip() for line in file][: given.captions]
    photos = [path.read_bytes() for path in sorted((DATA / "dreambench").glob("*/*.jpg"))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finder = LanguageEntityFinder(str(tiny_language_model(folder / "llm")), "cpu", max_new_tokens=8)
        captioner = Blip2Captioner(str(tiny_blip2(folder / "blip2")), "cpu", max_new_tokens=8)
        segmenter = ClipSegSegmenter(str(tiny_clipseg(folder / "clipseg")), "cpu")
    samples = [Sample(str(index), "", b"", caption=caption) for index, caption in enumerate(captions)]
    around = len(finder.tokenizer(finder.question(""))["input_ids"])
    lengths = [finder.size(sample) for sample in samples]
    size = given.batch_size
    for chunk in (64, 512):
        for what, extra in (("captions alone", 0), (f"with the {around} tokens around them", around)):
            tokens = [length + extra for length in lengths]
            before, after = (padding(tokens, size, chunk, sized) for sized in (False, True))
            print(f"language_model, chunks of {chunk}, {what}: {before:.1%} -> {after:.1%} of the tokens are padding")
        print(f"language_model, chunks of {chunk}: {compared(finder, samples, size, chunk)}")
    images = [Sample(str(index), "", photos[index % len(photos)]) for index in range(2 * len(photos))]
    for image in images:
        _ = image.image  # decoded in advance: that costs the same in any order
    print(f"blip2, {len(photos)} photos twice: {compared(captioner, images, size, 64)}; no padding in any order")
    found = NounChunkFinder()(samples[: len(images)])
    for image, answer in zip(images, found, strict=True):
        image.spans = answer.spans if isinstance(answer, EntitySpans) else []
    phrases = list({span.text for image in images for span in image.spans})
    words = [len(ids) for ids in segmenter.processor.tokenizer(phrases)["input_ids"]]
    before, after = (padding(words, segmenter.entities_at_once, len(words), sized) for sized in (False, True))
    entities = sum(len(image.spans) for image in images)
    print(f"clipseg, {len(phrases)} phrases: {before:.1%} -> {after:.1%} of the tokens are padding")
    print(f"clipseg, {entities} entities: {1000 * spent(segmenter, images, size, 64):.2f} ms of CPU per image")


if __name__ == "__main__":
    main()
