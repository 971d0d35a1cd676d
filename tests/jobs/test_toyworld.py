"""`kosmosg run toyworld`: every part as a Ray task, a folder that diffusers loads, and nothing done twice."""

import json
import time
from pathlib import Path

import pytest

from jobs.experiment import load
from jobs.toyworld import run
from kosmosg.toyworld.acceptance import THRESHOLDS
from kosmosg.toyworld.build import FITS


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
