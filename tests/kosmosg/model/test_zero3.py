"""Loading, starting anew and training under DeepSpeed ZeRO-3, where no process ever holds the whole model."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kosmosg import KosmosG, KosmosGConfig

pytest.importorskip("deepspeed", reason="DeepSpeed belongs to the extra `platform`")

SCRIPT = """
import json, sys
import deepspeed, torch
from transformers import AutoModel
from transformers.integrations import HfDeepSpeedConfig
from kosmosg import KosmosG
from kosmosg.config import KosmosGConfig
from kosmosg.errors import ConfigError

deepspeed.init_distributed("gloo")
settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
settings["zero_allow_untested_optimizer"] = True
alive = HfDeepSpeedConfig(settings)
whole = deepspeed.zero.GatheredParameters
found = {}

loaded = KosmosG.from_pretrained(sys.argv[1])
found["split"] = all(p.numel() == 0 for p in loaded.parameters())
with whole(list(loaded.parameters())):
    found["sums"] = {name: p.double().sum().item() for name, p in loaded.named_parameters()}

fresh = AutoModel.from_config(KosmosGConfig.from_pretrained(sys.argv[1]))
embedding, queries = fresh.get_input_embeddings().weight, fresh.mllm.image_to_text_projection.latent_query
with whole([embedding, queries]):
    found["fresh"] = [embedding.std().item(), embedding[1].abs().max().item(), queries.std().item()]

optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
engine, _, _, _ = deepspeed.initialize(model=loaded.train(), optimizer=optimizer, config=settings)
losses = []
torch.manual_seed(0)
for _ in range(3):
    loss = engine(torch.tensor([[0, 5, 6, 7]])).condition.square().mean()
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
found["losses"] = losses

try:
    with deepspeed.zero.Init(config_dict_or_path=settings):
        KosmosG(KosmosGConfig.from_pretrained(sys.argv[1]))
except ConfigError as error:
    found["refused"] = str(error)
print("found", json.dumps(found))
"""


@pytest.mark.slow
def test_model_loads_starts_and_learns_under_zero3(tmp_path: Path) -> None:
    config = KosmosGConfig.tiny(vocab_size=200)
    config.text_config.dropout = 0.0
    model = KosmosG(config)
    model.save_pretrained(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, **alone, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("found "))[6:])
    assert found["split"]
    expected = {name: parameter.detach().double().sum().item() for name, parameter in model.named_parameters()}
    assert found["sums"] == pytest.approx(expected)
    spread, pad, queries = found["fresh"]
    assert spread == pytest.approx(64**-0.5, rel=0.05)
    assert pad == 0.0
    assert queries == pytest.approx(1.0, rel=0.2)
    assert found["losses"] == sorted(found["losses"], reverse=True)
    assert "AutoModel.from_config" in found["refused"]
