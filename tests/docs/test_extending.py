"""Each block of docs/extending.md is a module that does what the page says."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from kosmosg.plugins import GROUP
from kosmosg_platform.datasets.dataset import RecordDataset

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "extending.md"


def blocks() -> dict[str, str]:
    """The modules of the page, by name."""
    return dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE))


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The block that begins with the comment `# NAME.py`, imported as a plug-in's module would be."""
    (tmp_path / f"{request.param}.py").write_text(blocks()[request.param])
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(request.param)


def test_a_source_and_an_annotator_build_a_dataset(tmp_path: Path) -> None:
    """As a package of their own would: found by entry points, in this process and in Ray's workers."""
    information = tmp_path / "mine-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    names = ("my_source", "my_annotator")
    (information / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(f"{name} = {name}\n" for name in names))
    for name in names:
        (tmp_path / f"{name}.py").write_text(blocks()[name])
    command = [sys.executable, "-m", "jobs.build_dataset", "tiny", "build.source={use: shapes, count: 3}"]
    path = os.pathsep.join([str(tmp_path), str(ROOT / "platform")])
    done = subprocess.run(
        [*command, f"output={tmp_path}/out"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    dataset = RecordDataset(tmp_path / "out/build_dataset/composition")
    assert len(dataset) == 3
    for record in dataset:
        assert record["caption"] == "a disc on the water"
        assert record["captioner"] == "told by the source"
        assert [entity["text"] for entity in record["entities"]] == ["disc"]


@pytest.mark.parametrize("extension", ["my_benchmark"], indirect=True)
def test_a_benchmark(extension: ModuleType, tmp_path: Path) -> None:
    from kosmosg.eval.benchmarks.base import BENCHMARKS, BenchmarkSettings, open_benchmark
    from kosmosg.eval.protocol import PROTOCOLS, find_protocol

    benchmark = open_benchmark(find_protocol("redness"), BenchmarkSettings())
    files = []
    for number, color in enumerate(("red", "red", "blue")):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (8, 8), color).save(files[-1])
    (row,) = benchmark.score(files, {}, {})
    assert row == {"set": "red", "share": pytest.approx(2 / 3)}
    assert benchmark.page([{"variant": "mine", **row}]).headlines == {"mine, red": "share 0.667"}
    assert benchmark.protocol.measured(benchmark.data_digest, {}).protocol_id != find_protocol("toyworld").protocol_id
    del BENCHMARKS["redness"], PROTOCOLS["redness"]


@pytest.mark.parametrize("extension", ["my_conditioner"], indirect=True)
def test_a_conditioner(extension: ModuleType, tmp_path: Path) -> None:
    from kosmosg import KosmosG, KosmosGConfig
    from kosmosg.conditioners.base import CONDITIONERS, with_conditioner

    model = KosmosG(with_conditioner(KosmosGConfig.tiny(), "mean")).eval()
    batch = {"input_ids": torch.tensor([[0, 5, 9, 7]])}
    condition = model.encode(batch).positive
    model.save_pretrained(tmp_path / "model")
    again = KosmosG.from_pretrained(tmp_path / "model").eval()
    assert type(again.aligner).__name__ == "MeanConditioner"
    assert torch.allclose(again.encode(batch).positive, condition)
    del CONDITIONERS["mean"]
