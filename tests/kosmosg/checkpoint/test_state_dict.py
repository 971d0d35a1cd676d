"""Files and folders that hold no weights are refused in one sentence."""

import pickle
from pathlib import Path

import pytest
import torch

from kosmosg.checkpoint.state_dict import open_weights
from kosmosg.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pt", None, "no checkpoint at"),
        ("damaged.pt", b"PK\x03\x04 not a zip", "cannot be read as weights"),
        ("text.pt", b"hello", "cannot be read as weights"),
        ("damaged.safetensors", b"\x00" * 20, "not a whole safetensors file"),
        ("number.pt", pickle.dumps(3), "cannot be read as weights"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_weights(path)


def test_state_dicts_that_are_none_are_refused(tmp_path: Path) -> None:
    for found, message in (([1, 2], "holds list"), ({}, "holds dict"), ({"a": 1}, "'a'")):
        torch.save(found, tmp_path / "odd.pt")
        with pytest.raises(CheckpointError, match=message):
            open_weights(tmp_path / "odd.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no safetensors and not exactly one"):
        open_weights(tmp_path / "empty")
