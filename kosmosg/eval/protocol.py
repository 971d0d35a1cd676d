"""Exactly what was measured, as a value with a short id: `protocol_id` is reported with every number.

Two papers that both say "DreamBench" or "COCO FID" have often measured different things. A `Protocol` holds everything
that affects a number: scheduler, steps, guidance, noise, prompts, images, resizing, feature networks, and, once they
are known, digests of the data and of the weights that were read. Its id is a hash of all that. Only compare numbers
with equal ids; otherwise the difference may come from the protocol.

Sources: [K] sample_kosmosg_dreambench.py, sample_kosmosg_coco.py, eval/ and vl_setup.sh of xichenpan/Kosmos-G;
[M] eval/EVALUATION.md, sample_coco.py, eval_coco.py, configs/llavaov0p5_sd.yaml and environment.yml of
facebookresearch/metaquery; [own] our choice.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from kosmosg.errors import ConfigError
from kosmosg.plugins import find_entry

DINO, CLIP, INCEPTION, RECOGNISER = "dino", "clip", "inception", "recogniser"
"""Names of the feature networks in `features` and `weights`."""

INPUT_PHOTO = "the input photo"
ALL_PHOTOS = "all photos of the subject"
"""References of DreamBench."""

SAMPLED = "random.Random(seed).sample of all captions"
IN_ORDER = "captions in the order of the folder"
"""Rules for the prompts of an FID."""

ALL_PLAIN = "all images, shorter side 256 bilinear without antialias, centre crop 256; drawn ones as they are"
ALL_SMOOTH = "all images; both sides shorter side 256 bicubic, centre crop 256"
OWN_SMOOTH = "the captions' own images; both sides shorter side 256 bicubic, centre crop 256"
"""References of an FID, and what is done to both sides before the network's own resizing."""

_ABOUT = ("name", "source")
_MEASURED = ("data", "weights")


@dataclass(frozen=True)
class Protocol:
    """Everything that a number depends on besides the evaluated model."""

    name: str
    """One of `PROTOCOLS`."""
    source: str
    """Where the settings come from; informational only."""
    benchmark: str
    """A name of `kosmosg.eval.benchmarks.base.BENCHMARKS`."""
    solver: str
    """Name in `kosmosg.diffusion.schedulers`; `decoder` is the one that the decoder was saved with."""
    steps: int
    """Denoising steps."""
    guidance: float
    """Classifier-free guidance."""
    noise: Literal["picture", "batch"]
    """`image`: each image has its own seed. `batch`: the seed is reset before each batch."""
    seed: int
    batch: int
    """Prompts generated together; affects numbers only if the noise is per batch."""
    size: int | None
    """Side of the generated images in pixels; None means the decoder's own."""
    pictures: int
    """Images per prompt."""
    subset: str
    """Which part of which collection."""
    prompts: str
    """The rule by which prompts are made."""
    count: int | None
    """Number of prompts: per set (toyworld), per subject (dreambench), captions (coco). None means all."""
    reference: str
    """The real images that images are compared with."""
    resize: str
    """How images reach the size of the feature networks."""
    features: Mapping[str, str]
    """Feature network -> the id that it is published under."""
    data: str = ""
    """Digest of subset, prompts and real images; empty until they have been read."""
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Feature network -> sha256 of the weights file that was used; empty until it has been read."""

    @property
    def protocol_id(self) -> str:
        """Ten hexadecimal digits: equal exactly if everything that affects a number is equal."""
        text = json.dumps(self.facts(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def label(self) -> str:
        """`name@id`; a protocol with changed settings says so, because its numbers are not comparable."""
        return f"{self.name}{' (changed)' if self.deviations() else ''}@{self.protocol_id}"

    def facts(self) -> dict[str, Any]:
        """What the id is computed from, as plain data."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _ABOUT}
        if self.noise == "picture":
            del values["batch"]
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    def changed(self, **values: Any) -> "Protocol":
        """A copy with other settings; None leaves one unchanged. It keeps the name, see `deviations`."""
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})

    def measured(self, data: str, weights: Mapping[str, str]) -> "Protocol":
        """A copy with the digests of what was actually read. Raises ConfigError if a network's weights are missing."""
        if set(weights) != set(self.features):
            raise ConfigError(
                f"protocol {self.name} uses the networks {', '.join(sorted(self.features))}, digests were given for "
                f"{', '.join(sorted(weights)) or 'none'}; give one for each"
            )
        return dataclasses.replace(self, data=data, weights=dict(weights))

    def deviations(self) -> list[str]:
        """What differs from the protocol of this name, in words; empty if it is followed as written."""
        own, written = self.facts(), PROTOCOLS[self.name].facts()
        return [
            f"{name} {own[name]} instead of {written[name]}"
            for name in own
            if name not in _MEASURED and own[name] != written.get(name, own[name])
        ]


_DREAMBENCH_FEATURES = {DINO: "facebook/dino-vits16", CLIP: "openai/clip-vit-base-patch32"}  # [K]
_FID_FEATURES = {
    INCEPTION: "pt_inception-2015-12-05-6726825d"
}  # [K] [M] by torchmetrics, which has it of torch-fidelity

_DREAMBENCH_KOSMOSG = Protocol(
    name="dreambench-kosmosg",
    source="sample_kosmosg_dreambench.py and eval/ of xichenpan/Kosmos-G",
    benchmark="dreambench",
    solver="dpms",  # [K] with diffusers 0.21.4, so the last step ends at the smallest sigma
    steps=100,  # [K]
    guidance=7.5,  # [K]
    noise="batch",  # [K] randomize_seed_fn(0) before each batch
    seed=0,  # [K]
    batch=5,  # [K]
    size=512,  # [K]
    pictures=4,  # [K]
    subset="30 subjects",  # [K]
    prompts="drop_object",  # [K]
    count=25,  # the official list
    reference=INPUT_PHOTO,  # [K]
    resize="dino: shorter side 256 bicubic, crop 224; clip: its own processor",  # [K]
    features=_DREAMBENCH_FEATURES,
)

_DREAMBENCH = dataclasses.replace(
    _DREAMBENCH_KOSMOSG,
    name="dreambench",
    source="DreamBooth (arXiv 2208.12242), sampling as in dreambench-kosmosg but for the noise",
    noise="picture",  # [own] images of different prompts share no noise, and any batch size gives the same
    reference=ALL_PHOTOS,  # DreamBooth: mean over all pairs of drawn and real
)

_COCO_KOSMOSG = Protocol(
    name="coco-kosmosg",
    source="sample_kosmosg_coco.py of xichenpan/Kosmos-G, torchmetrics 1.0.0",
    benchmark="coco",
    solver="ddim",  # [K]
    steps=250,  # [K]
    guidance=3.0,  # [K]
    noise="batch",  # [K]
    seed=0,  # [K] of the noise and of the subset
    batch=16,  # [K]
    size=512,  # [K]
    pictures=1,  # [K]
    subset="val2014",  # [K]
    prompts=SAMPLED,  # [K]
    count=30_000,  # [K]
    reference=ALL_PLAIN,  # [K] resized as a tensor, which torchvision of that time did without antialias
    resize="tf1",  # [K] torchmetrics before antialiasing: bilinear as TensorFlow 1 did it, no antialias
    features=_FID_FEATURES,
)

_COCO_CLEAN = dataclasses.replace(
    _COCO_KOSMOSG,
    name="coco-clean",
    source="sampling of coco-kosmosg, resizing of clean-fid (arXiv 2104.11222)",
    noise="picture",  # [own]
    reference=ALL_SMOOTH,  # [own]
    resize="clean",
)

_COCO_METAQUERY = dataclasses.replace(
    _COCO_KOSMOSG,
    name="coco-metaquery",
    source="eval/sample_coco.py and eval/eval_coco.py of facebookresearch/metaquery, torchmetrics 1.6.3",
    solver="dpm++",  # [M] DPMSolverMultistepScheduler of diffusers' own settings
    steps=30,  # [M]
    guidance=3.0,  # [M]
    noise="picture",  # [M] does not seed at all; this is the nearest that can be repeated
    batch=1,  # [M]
    subset="sayakpaul/coco-30-val-2014",  # [M]
    prompts=IN_ORDER,  # [M]
    reference=OWN_SMOOTH,  # [M]
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (_DREAMBENCH_KOSMOSG, _DREAMBENCH, _COCO_KOSMOSG, _COCO_CLEAN, _COCO_METAQUERY)
}
"""The protocols by name; plug-ins can add more."""


def find_protocol(name: str) -> Protocol:
    """The protocol of that name. Raises ConfigError."""
    return find_entry(PROTOCOLS, name, "evaluate.protocol")
