"""Damage to an export is noticed when it is loaded, whichever file and byte it is."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from kosmosg import KosmosG, KosmosGConfig, KosmosGProcessor
from kosmosg.checkpoint.digest import model_digest
from kosmosg.checkpoint.export import load_aligner_decoder, load_export, save_export
from kosmosg.checkpoint.sums import SUMS
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.errors import CheckpointError


@pytest.fixture(scope="module")
def made(tiny_sentencepiece: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    processor = KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, image_size=32, num_image_tokens=4)
    torch.manual_seed(0)
    model = KosmosG(KosmosGConfig.tiny(vocab_size=processor.vocab_size))
    return save_export(
        model, processor, tmp_path_factory.mktemp("made") / "export", {}, "", AlignerDecoder(model.config)
    )


@pytest.fixture
def export(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "export")


def flip(path: Path, at: float) -> None:
    """One byte changed in place, with the file's times put back."""
    times, content = path.stat(), bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_list_is_that_of_sha256sum_and_no_part_of_the_model(export: Path) -> None:
    subprocess.run(["sha256sum", "--strict", "--quiet", "-c", SUMS], cwd=export, check=True)
    listed = {line.split("  ", 1)[1] for line in (export / SUMS).read_text().splitlines()}
    there = {path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()}
    assert there - listed == {SUMS, "README.md", "experiment.yaml"}
    before = model_digest(export)
    (export / "README.md").write_text("mine")
    (export / "notes.txt").write_text("mine")
    load_export(export)
    (export / "notes.txt").unlink()
    (export / SUMS).unlink()
    load_export(export)
    assert model_digest(export) == before


@pytest.mark.parametrize("at", [0.2, 0.9])
@pytest.mark.parametrize("name", ["model.safetensors", "sentencepiece.bpe.model"])
@pytest.mark.parametrize("seen", [False, True])
def test_a_flipped_byte_is_refused_by_name(export: Path, name: str, at: float, seen: bool) -> None:
    if seen:
        load_export(export)
    flip(export / name, at)
    with pytest.raises(CheckpointError, match=rf"{name} has the sha256 \w{{64}}, {SUMS} says \w{{64}}: it is damaged"):
        load_export(export)


def test_the_aligners_decoder_is_compared_when_it_is_loaded(export: Path) -> None:
    flip(export / "aligner_decoder/model.safetensors", 0.9)
    with pytest.raises(CheckpointError, match=r"aligner_decoder/model.safetensors has the sha256"):
        load_aligner_decoder(export)


def test_missing_files_and_a_damaged_list_are_told(export: Path) -> None:
    (export / "aligner_decoder/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks aligner_decoder/config.json, which its SHA256SUMS lists"):
        load_export(export)
    for text in ("nonsense", "00  config.json", f"{'0' * 64}  ../config.json", f"{'0' * 64}  /config.json"):
        (export / SUMS).write_text(text + "\n")
        with pytest.raises(CheckpointError, match=r"SHA256SUMS is damaged \("):
            load_export(export)
