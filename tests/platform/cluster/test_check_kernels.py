"""The image's check of its own kernels, by NVIDIA's rules of compatibility."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "platform" / "infra" / "check_kernels.py"
CU126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = spec_from_file_location("check_kernels", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("wanted", "built", "absent"),
    [
        (["sm_70"], CU126, []),
        (["sm_70"], CU130, ["sm_70"]),
        (["sm_80", "sm_90"], CU130, []),
        (["sm_89"], CU130, []),  # kernels of 8.0 and 8.6 run on 8.9
        (["sm_72"], ["sm_75"], ["sm_72"]),  # but not on an older minor version
        (["sm_103"], ["sm_100"], []),
        (["sm_90"], ["sm_100"], ["sm_90"]),
        (["sm_120"], ["sm_80", "compute_90"], []),  # PTX is compiled for newer GPUs
        (["sm_80"], ["compute_90"], ["sm_80"]),
        (["sm_90"], ["sm_90a"], []),
        (["sm_80"], [], ["sm_80"]),
    ],
)
def test_which_gpus_have_kernels(script: Any, wanted: list[str], built: list[str], absent: list[str]) -> None:
    assert script.missing(wanted, built) == absent


def test_a_build_without_kernels_ends_with_one_sentence() -> None:
    import torch

    if torch.version.cuda:
        pytest.skip("this torch has kernels")
    done = subprocess.run([sys.executable, SCRIPT, "sm_90"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no kernels for sm_90; it has none" in done.stderr
    assert "Traceback" not in done.stderr
