"""The toy world's registry entries. Imported by `kosmosg.plugins.load_plugins`, never by name elsewhere.

Kept light: entries name what they load, and load it on use.
"""

from typing import TYPE_CHECKING

from kosmosg.data.annotators.base import ANNOTATORS
from kosmosg.data.records import RECORD_KINDS, RecordKind, SampleKind
from kosmosg.data.sources.base import SOURCES
from kosmosg.eval.benchmarks.base import BENCHMARKS
from kosmosg.eval.protocol import PROTOCOLS, RECOGNISER, Protocol
from kosmosg.hub import MODELS, ShippedModels
from kosmosg.shapes import MODEL_SHAPES
from kosmosg.toyworld.assets import TRAINED, toyworld_folder

if TYPE_CHECKING:
    from kosmosg.config import KosmosGConfig


def _new_config(vocab_size: int) -> "KosmosGConfig":
    from kosmosg.toyworld.shape import toyworld_config

    return toyworld_config(vocab_size)


MODELS["toyworld"] = ShippedModels(
    toyworld_folder(),
    TRAINED,
    default_steps=20,
    default_guidance=3.0,
    description="32 x 32 pixels, six shapes of the toy world; a lone `<i>` may appear twice unless you "
    "name its shape (`a ball <i>`)",
)
MODEL_SHAPES["toyworld"] = _new_config

# An image with a question and its answer for a text, read as any words about an image are.
RECORD_KINDS["questions"] = RecordKind(
    RECORD_KINDS["caption"].schema,
    images=("image",),
    samples={"pretrain": SampleKind(share=1, words=24, images=1, needs_image=True, template="caption")},
    stored_as="caption",
)

SOURCES["toyworld"] = "kosmosg.toyworld.source:Toyworld"
ANNOTATORS |= {
    "toyworld_captions": "kosmosg.toyworld.annotators:ToyworldCaptioner",
    "toyworld_entities": "kosmosg.toyworld.annotators:ToyworldEntityFinder",
    "toyworld_masks": "kosmosg.toyworld.annotators:ToyworldSegmenter",
}

BENCHMARKS["toyworld"] = "kosmosg.toyworld.judging:ToyworldBenchmark"
PROTOCOLS["toyworld"] = Protocol(
    name="toyworld",
    source="kosmosg/toyworld/benchmark.py",
    benchmark="toyworld",
    solver="decoder",
    steps=20,
    guidance=3.0,
    noise="picture",
    seed=0,
    batch=16,
    size=None,
    pictures=1,
    subset="held-out subjects",
    prompts="image",
    count=32,
    reference="the scene that the prompt asks for",
    resize="none",
    features={RECOGNISER: "kosmosg/assets/toyworld/recogniser"},
)
