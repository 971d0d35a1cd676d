"""Which noun finder to choose: `nouns` (no dependency) beside `noun_chunks` (spaCy) on real captions.

    python tests/benchmarks/noun_finders.py            # seconds on one core

Real captions: the first 40 of Flickr30k's validation captions (in `$KOSMOSG_SHARED/data`), whose things were marked by
hand: what the caption says the image shows and one could cut out, and words that may be named or not (places, parts of
a body, amounts). A find counts by its last word. Folder names: the 30 subjects of DreamBench, where the thing is what
the folder names.
Nothing here passes or fails.
"""

import argparse
import gzip
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from kosmosg.data.annotators.base import EntitySpans, Sample
from kosmosg.data.annotators.noun_chunks import NounChunkFinder
from kosmosg.data.annotators.nouns import NounFinder
from kosmosg.data.annotators.sidecar import SidecarCaptioner

# Per caption: things to be found / things that may be.
MARKED = """
people truck cotton / group
adult shirt sleeves couch /
boy shirt headphones shoulders / woman crowd
men ice tarp / something
man shirt jacket canoe / lake
woman jeans coat handbag / arms street
dogs / area water background
man uniform bat baseball /
guy desk phone books /
woman / preserve
boy / edge blue yellow
rider machine trees / air
mother children can / garbage street
woman apron flowers / display street
woman man shirts instruments paper /
people atvs bikes trees / path field
man building bicycles / patio
people ride / group carnival jungle
girl chair fabrics bags /
people drink / head finger mouth hair
people man shirt / group bar arm camera
woman man bridge sign /
man cap top skirt socks boots knives building sign onlookers / room
woman hat apron tray / samples
workers machinery / piece
dogs / field grass
baby child / floor
men clothing / road
parachute / someone face top
mountain bulldozer / site side ground dirt
girl shorts top cone tape / grass
liquids grate / street
boy shirt bars /
pole person shirt / wall face hand
kid man people / crowd
people girl stool / room
pedestrians buildings / area
man backpack paper woman coat / train
dog / grass spray side frame
boy shirt / craft fabric
""".strip().splitlines()


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    shared = Path(os.environ.get("KOSMOSG_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not shared.is_dir():
        print(f"real captions are absent: no folder {shared} (set KOSMOSG_SHARED)")
        return
    with gzip.open(shared / "data/captions/flickr30k.val.1.txt.gz", "rt") as file:
        captions = [line.strip() for line in file]
    marked = [[set(part.split()) for part in line.split("/")] for line in MARKED]
    subjects = sorted(folder.name for folder in (shared / "data/dreambench").iterdir() if folder.is_dir())
    print("| finder | precision | recall | folder names right | captions/s |\n|---|---|---|---|---|")
    for word, finder in (("nouns", NounFinder()), ("noun_chunks", NounChunkFinder())):
        found = heads(finder, captions[: len(marked)])
        hits = sum(len(heads_of & must) for heads_of, (must, _) in zip(found, marked, strict=True))
        wrong = sum(len(heads_of - must - may) for heads_of, (must, may) in zip(found, marked, strict=True))
        wanted = sum(len(must) for must, _ in marked)
        named = [SidecarCaptioner().caption(sample("", folder=name)) for name in subjects]
        right = [
            len(things) == 1 and name.rstrip("0123456789").endswith(next(iter(things)))
            for name, things in zip(subjects, heads(finder, [str(caption) for caption in named]), strict=True)
        ]
        began = time.perf_counter()
        heads(finder, captions)
        rate = len(captions) / (time.perf_counter() - began)
        precision, recall = hits / (hits + wrong), hits / wanted
        print(f"| `{word}` | {precision:.2f} | {recall:.2f} | {sum(right)} of {len(right)} | {rate:,.0f} |")


def heads(finder: NounFinder | NounChunkFinder, captions: Sequence[str]) -> list[set[str]]:
    """The last word of every thing that is found in each caption, in small letters."""
    answers = finder([sample(caption) for caption in captions])
    return [
        {re.findall(r"\w+", span.text.lower())[-1] for span in answer.spans}
        if isinstance(answer, EntitySpans)
        else set()
        for answer in answers
    ]


def sample(caption: str, **hints: str) -> Sample:
    """A sample without an image."""
    return Sample(id="caption", source="caption", encoded=b"", hints=hints, caption=caption)


if __name__ == "__main__":
    main()
