"""`kosmosg run toyworld`: every part as a Ray task, a folder that diffusers loads, and nothing done twice."""

import json
import shutil
import time
from pathlib import Path

import pytest

from jobs.experiment import load
from jobs.toyworld import run
from kosmosg.checkpoint.publish import check_replaceable
from kosmosg.errors import CheckpointError
from kosmosg.toyworld.acceptance import THRESHOLDS
from kosmosg.toyworld.build import DECODER, FITS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_job_leaves_a_decoder_and_a_second_run_only_measures(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from kosmosg.diffusion.decoder import FrozenDecoder

    settings = [f"output={tmp_path}", "toyworld_build.effort=0.001", "toyworld_build.scenes=2"]
    folder = run(load("toyworld", "tiny", settings))
    said = capfd.readouterr()
    assert folder == tmp_path / "toyworld" / "toyworld"
    assert said.out.strip().endswith(str(folder))
    assert f"is below {THRESHOLDS['shape']}" in said.err  # a few steps teach nothing

    decoder = FrozenDecoder.from_pretrained(folder)
    assert (decoder.prediction_type, decoder.latent_shape, decoder.condition_dim) == ("v_prediction", (8, 8, 8), 128)
    bills = json.loads((folder / "scores.json").read_text())["training"]
    assert {name: bill["steps"] for name, bill in bills.items()} == {
        name: max(1, round(config.steps * 0.001)) for name, config in FITS.items()
    }
    assert "Thresholds (" in (folder / "README.md").read_text()

    made = {name: (tmp_path / "toyworld" / name / "bill.json").stat().st_mtime_ns for name in FITS}
    began = time.perf_counter()
    run(load("toyworld", "tiny", settings))
    assert made == {name: (tmp_path / "toyworld" / name / "bill.json").stat().st_mtime_ns for name in FITS}
    assert time.perf_counter() - began < 120


@pytest.mark.parametrize("foreign", ["notes.txt", "unet/diffusion_pytorch_model.fp16.safetensors"])
def test_a_destination_with_a_file_of_the_users_is_refused_before_anything_is_trained(
    tmp_path: Path, foreign: str
) -> None:
    dest = tmp_path / "decoder"
    (dest / foreign).parent.mkdir(parents=True)
    (dest / foreign).write_text("mine")
    settings = [f"output={tmp_path / 'runs'}", f"dest={dest}"]
    with pytest.raises(CheckpointError, match="which is no part of a decoder of the toy world"):
        run(load("toyworld", "tiny", settings))
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


def test_a_stable_diffusion_of_the_users_is_no_destination(tiny_sd_parts: Path, tmp_path: Path) -> None:
    """It has the layout of diffusers, as the toy world's decoder has, and its very file names."""
    dest = tmp_path / "decoder"
    shutil.copytree(tiny_sd_parts, dest)
    before = sorted(dest.rglob("*"))
    with pytest.raises(CheckpointError, match=r"its recogniser/config\.json is missing"):
        run(load("toyworld", "tiny", [f"output={tmp_path / 'runs'}", f"dest={dest}"]))
    assert sorted(dest.rglob("*")) == before


def test_the_decoder_that_ships_may_be_replaced() -> None:
    check_replaceable(ROOT / "kosmosg" / "assets" / "toyworld", DECODER)
