"""Each block of docs/extending.md is a module that does what the page says."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The block that begins with the comment `# NAME.py`, imported as a plug-in's module would be."""
    blocks = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE))
    (tmp_path / f"{request.param}.py").write_text(blocks[request.param])
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module(request.param)


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
