"""Columns that a frozen model computes once for all epochs, in fp16, one value per record of a dataset.

    target_posterior   (2, c, h, w)  mean and deviation of the VAE's posterior of the image that stage 3 generates
    text_states        (Q, D)        states of the decoder's text encoder of the caption, the target of stage 2

Training reads them instead of running VAE and text encoder; see `kosmosg.data.collate`. They are stored unscaled and as
a posterior, not as a sample, because every epoch takes another sample.

Letters: Q tokens of a CLIP caption, D width of the text encoder, (c, h, w) latent.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kosmosg.errors import DataError

if TYPE_CHECKING:  # torch takes seconds, and the table of record kinds only needs the names below
    from torch import Tensor

POSTERIOR = "target_posterior"
TEXT_STATES = "text_states"
STORED_AS = np.dtype("<f2")


def pack(values: "Tensor") -> bytes:
    """Values as little-endian fp16 bytes. Raises DataError if one of them is not finite, or too large for fp16."""
    import torch

    exact = values.detach().to("cpu", torch.float32)
    if not bool((exact.abs() <= torch.finfo(torch.float16).max).all()):  # also false for NaN
        raise DataError(
            f"the model gives values up to {values.abs().max().item():.3g}, fp16 holds 6.55e+04; "
            "train without precomputed columns: data.precomputed=never"
        )
    return exact.numpy().astype(STORED_AS).tobytes()


def unpack(record: Mapping[str, Any], column: str, shape: Sequence[int]) -> "Tensor":
    """A column of a record as fp32 values of `shape`.

    Raises DataError for a record without the value (its image could not be decoded) or with one of another size.
    """
    import torch

    data = record.get(column)
    if data is None:
        raise DataError(
            f"record {record.get('id')!r} has no {column}: its image could not be decoded when the column was made"
        )
    values = np.frombuffer(data, STORED_AS)
    if values.size != np.prod(shape):
        raise DataError(
            f"{column} of record {record.get('id')!r} has {values.size} values, {tuple(shape)} are needed; "
            "run `kosmosg run precompute` again"
        )
    return torch.from_numpy(values.astype(np.float32).reshape(tuple(shape)))
