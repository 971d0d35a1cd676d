"""Which precomputed columns a stage reads: what identifies them, and the search for them beside its datasets.

Columns are not part of a run's identity: they change its losses by the rounding to fp16 alone, as another number of
workers does by the order of sums.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kosmosg.data.precomputed import POSTERIOR, TEXT_STATES
from kosmosg.diffusion.decoder import decoder_sizes, text_sizes
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor
from kosmosg_platform.console import echo
from kosmosg_platform.datasets.precomputed import column_folder, is_complete, is_started
from kosmosg_platform.training.initial_model import decoder_fingerprint

TARGETS = 1  # raise it when `target_pixels` gives other pixels of the same image

Identity = Mapping[str, Any]


def posterior_identity(decoder: str) -> Identity:
    """What the posteriors of target images depend on."""
    sizes = decoder_sizes(decoder)
    vae = decoder_fingerprint(decoder, ("vae",))
    return {"vae": vae, "image_size": sizes.image, "targets": TARGETS, "shape": [2, *sizes.latent]}


def text_states_identity(decoder: str, processor: KosmosGProcessor, length: int) -> Identity:
    """What the text encoder's states of captions depend on. `length` is stage 2's maximum row length in tokens."""
    return {
        "text_encoder": decoder_fingerprint(decoder, ("text_encoder", "tokenizer")),
        "tokenizer": hashlib.sha256(processor.tokenizer.serialized_model_proto()).hexdigest(),
        "length": length,
        "shape": list(text_sizes(decoder)),
    }


def find_columns(
    stage: str, mode: str, folders: Mapping[str, Path], column: str, identity: Callable[[], Identity]
) -> dict[str, Path]:
    """The folders of a column by kind of sample: for all datasets of a mixture, or for none.

    Every rank must run the same modules, so a mixture with the column for some of its datasets does without.

    Args:
        stage: for messages.
        mode: `auto`, `always` or `never`, as in `data.precomputed`.
        folders: datasets by kind of sample.
        column: `target_posterior` or `text_states`.
        identity: gives what its values depend on.

    Raises ConfigError if the mode is `always` and a dataset has no such column.
    """
    started = any(is_started(folder, column) for folder in folders.values())
    if mode == "never" or (mode == "auto" and not started):
        return {}
    known = identity()
    found = {name: column_folder(folder, column, known) for name, folder in folders.items()}
    missing = [name for name, folder in found.items() if not is_complete(folders[name], folder)]
    if not missing:
        echo(f"{stage}: reading precomputed {column}")
        return found
    first = folders[missing[0]]
    remedy = f"there is no {column} of this {_depends_on(column)} for {first}; run `kosmosg run precompute`"
    if mode == "always":
        raise ConfigError(f"data.precomputed: {remedy} with the same settings, or set data.precomputed=auto")
    echo(f"{stage}: not using precomputed columns, because {remedy}")
    return {}


def _depends_on(column: str) -> str:
    return {POSTERIOR: "decoder", TEXT_STATES: "decoder, tokenizer and data.max_seq_len"}[column]
