"""Published weights: every name of the released layout is accounted for, nothing in a file is ever executed."""

import argparse
import collections
import contextlib
import enum
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from kosmosg import KosmosG, KosmosGConfig, KosmosGProcessor
from kosmosg.checkpoint.export import load_export
from kosmosg.checkpoint.state_dict import open_weights
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.convert import (
    decoder_from_reference,
    from_reference,
    import_weights,
    load_vision,
    plan_reference,
)
from kosmosg.errors import CheckpointError

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
KEYS: dict[str, list[int]] = json.loads((GOLDEN / "kosmosg_checkpoint_keys.json").read_text())
N_KEYS = [name for name in KEYS if name.startswith("aligner.decoder")]

SMALL = KosmosGConfig(
    text_config={"vocab_size": 64, "embed_dim": 32, "attention_heads": 4, "layers": 2, "ffn_dim": 64},
    vision_config={
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    latent_query_num=4,
    aligner_config={
        "d_model": 24,
        "layers": 2,
        "attention_heads": 4,
        "ffn_dim": 40,
        "num_queries": 7,
        "max_position_embeddings": 30,
    },
)
# What each full-size dimension becomes; 64 queries and 77 stay apart from other uses of their number by name.
SHRINK = {64007: 64, 2048: 32, 8192: 64, 1024: 16, 4096: 48, 257: 5, 768: 24, 3072: 40, 77: 7, 32768: 100, 32: 4}


def released(stage: int) -> dict[str, Tensor]:
    """A checkpoint with every name of the released layout, at small size; stage 1 has no aligner, stage 2 has N."""
    torch.manual_seed(0)
    state = {}
    for name, shape in KEYS.items():
        block = next((int(part) for part in name.split(".") if part.isdigit()), 0)
        if block >= 2 or (stage == 1 and name.startswith("aligner.")) or (stage == 3 and name in N_KEYS):
            continue
        small = [4 if name == "img_connector.latent_query" and n == 64 else SHRINK.get(n, n) for n in shape]
        state[name] = torch.randn(small) * 0.1
    state["gpt_model.decoder.output_projection.weight"] = state["gpt_model.decoder.embed_tokens.weight"]
    state["diffusion_unet.unet.conv_in.weight"] = torch.zeros(3)
    state["vae.vae.encoder.conv_in.weight"] = torch.zeros(3)
    if stage == 2:
        state["aligner.clip_encoder.text_model.final_layer_norm.weight"] = torch.zeros(3)
    return state


def test_full_size_every_name_and_shape_lands() -> None:
    full = {name: torch.empty(shape, device="meta") for name, shape in KEYS.items()}
    plan = plan_reference(full, KosmosGConfig.paper())
    assert sorted([*plan.model.values(), *plan.decoder.values(), *plan.ignored]) == sorted(KEYS)
    assert sorted(plan.decoder.values()) == sorted(N_KEYS)
    assert sorted(plan.ignored) == [
        "gpt_model.decoder.embed_positions._float_tensor",
        "gpt_model.decoder.output_projection.weight",
        "gpt_model.decoder.self_attn_sope.scale",
    ]
    assert plan.fresh == []
    model = plan.build()
    assert sum(p.numel() for p in model.mllm.parameters()) == 1_662_375_936
    assert sum(p.numel() for p in model.aligner.parameters()) == 225_461_760
    assert sum(p.numel() for p in plan.build_decoder().parameters()) == 476_031_488 - 225_461_760


def test_published_configuration_is_recognised_and_its_position_table_trimmed() -> None:
    full = {name: torch.empty(shape, device="meta") for name, shape in KEYS.items() if name not in N_KEYS}
    model = from_reference(full)
    assert model.config.aligner_config.max_position_embeddings == 2050
    assert model.config.max_tokens == 2048
    assert sum(p.numel() for p in model.aligner.parameters()) == 225_461_760 - (32_768 - 2050) * 768


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_values_of_every_stage_arrive(stage: int) -> None:
    state = released(stage)
    model = from_reference(state, SMALL)
    ours = dict(model.named_parameters())
    assert not model.training
    plan = plan_reference(state, SMALL)
    for name, theirs in plan.model.items():
        assert ours[name].equal(state[theirs][: len(ours[name])]), name
    assert bool(plan.fresh) == (stage == 1)
    assert bool(plan.decoder) == (stage == 2)
    assert all(torch.isfinite(parameter).all() for parameter in ours.values())
    if stage == 2:
        n = decoder_from_reference(state, SMALL)
        assert isinstance(n, AlignerDecoder)
        assert n.decoder_query.weight.equal(state["aligner.decoder_query"][:30])
    else:
        with pytest.raises(CheckpointError, match=r"has no aligner.decoder"):
            decoder_from_reference(state, SMALL)


def test_trimmed_positions_change_nothing() -> None:
    state = released(3)
    longer = KosmosGConfig.from_dict(SMALL.to_dict())
    longer.aligner_config.max_position_embeddings = 100
    prompt = {"input_ids": torch.tensor([[0, *range(4, 30)]])}
    short, long = from_reference(state, SMALL).encode(prompt), from_reference(state, longer).encode(prompt)
    assert short.positive.equal(long.positive)


def test_precision_of_the_file_is_kept() -> None:
    state = {name: tensor.half() for name, tensor in released(1).items()}
    assert {p.dtype for p in from_reference(state, SMALL).parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"gpt_model.decoder.surprise": torch.zeros(1)}), "'gpt_model.decoder.surprise'.*no place"),
        (lambda s: s.update({"gpt_model.decoder.layers.2.ffn.fc1.bias": torch.zeros(64)}), "deeper.*2 text"),
        (lambda s: s.pop("img_connector.dense.bias"), "lacks 1 parameters.*image_to_text_projection.dense.bias"),
        (lambda s: s.pop("aligner.encoder_query"), "lacks 1 parameters.*aligner.encoder_query"),
        (lambda s: s.update({"img_connector.dense.bias": torch.zeros(31)}), r"dense.bias is \(31,\).*\(32,\)"),
        (lambda s: s["img_connector.dense.bias"].fill_(torch.nan), "img_connector.dense.bias holds.*not finite"),
        (lambda s: s.pop("gpt_model.decoder.embed_tokens.weight"), "no released Kosmos-G checkpoint"),
        (lambda s: s.update({"aligner.decoder.layer_norm.bias": torch.zeros(24)}), "lacks .*decoder_query"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    state = released(3)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        from_reference(state, SMALL)


def test_other_sizes_need_a_configuration() -> None:
    with pytest.raises(CheckpointError, match=r"32 wide, the published model 2048.*pass config="):
        from_reference(released(3))


class Criterion(enum.Enum):
    """Pickled by reference, like fairseq's settings: a class that the reader must not import."""

    ADAM = "adam"


def trained(path: Path, state: dict[str, Tensor]) -> Path:
    """A file as fairseq leaves it: settings, optimizer and loop state around the weights."""
    cfg = argparse.Namespace(lr=[1e-3], criterion=Criterion.ADAM, data=Path("/data"))
    loop = {"epoch": 1, "meters": collections.defaultdict(list, {"loss": [0.5]}), "shards": {1, 2}}
    extra = {"args": None, "cfg": cfg, "extra_state": loop, "last_optimizer_state": {"step": torch.zeros(1)}}
    torch.save({"model": state, **extra}, path)
    return path


def test_file_with_settings_opens_without_running_them(tmp_path: Path) -> None:
    state = released(3)
    found = open_weights(trained(tmp_path / "checkpoint_final.pt", state))
    assert found.keys() == state.keys()
    model = from_reference(tmp_path / "checkpoint_final.pt", SMALL)
    assert model.aligner.encoder_query.weight.equal(state["aligner.encoder_query"])


class Hostile:
    def __init__(self, command: tuple[Any, ...]) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return self.command


@pytest.mark.parametrize("call", ["os.system", "builtins.exec", "subprocess"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_never_runs(tmp_path: Path, call: str, legacy: bool) -> None:
    witness = tmp_path / "witness"
    command: tuple[Any, ...] = {
        "os.system": (os.system, (f"touch {witness}",)),
        "builtins.exec": (exec, (f"open({str(witness)!r}, 'w')",)),
        "subprocess": (subprocess.call, (["touch", str(witness)],)),
    }[call]
    path = tmp_path / "hostile.pt"
    torch.save({"model": released(3), "cfg": Hostile(command)}, path, _use_new_zipfile_serialization=not legacy)
    with contextlib.suppress(CheckpointError):  # refused, or read with an inert placeholder in the place of the call
        from_reference(path, SMALL)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()  # so the file does attack a careless reader


def openai_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower of a released checkpoint as OpenAI stores it, with the text tower beside it."""
    clip: dict[str, Tensor] = {"logit_scale": torch.zeros(()), "text_projection": torch.zeros(2, 2)}
    for name, tensor in state.items():
        if not name.startswith("img_model."):
            continue
        name = name.removeprefix("img_model.").replace("ts_attn.out_proj", "attn.out_proj")
        if "ts_attn" not in name:
            clip[name] = tensor
    for block in range(2):
        theirs, ours = (f"{p}visual.transformer.resblocks.{block}." for p in ("", "img_model."))
        for kind in ("weight", "bias"):
            parts = [state[f"{ours}ts_attn.{part}_proj.{kind}"] for part in "qkv"]
            clip[f"{theirs}attn.in_proj_{kind}"] = torch.cat(parts)
    clip["visual.proj"] = torch.zeros(2)
    return clip


def test_vision_file_stands_in_for_a_missing_tower(tmp_path: Path) -> None:
    state = released(3)
    expected = from_reference(state, SMALL)
    torch.save(openai_clip(state), tmp_path / "ViT-L-14-sd.pt")
    without = {name: tensor for name, tensor in state.items() if not name.startswith("img_model.")}
    with pytest.raises(CheckpointError, match="needs one given beside it"):
        from_reference(without, SMALL)
    found = from_reference(without, SMALL, vision=tmp_path / "ViT-L-14-sd.pt")
    for (name, ours), theirs in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert ours.equal(theirs), name


def test_vision_tower_from_openai_and_from_transformers(tmp_path: Path) -> None:
    state = released(3)
    source = from_reference(state, SMALL).mllm.vision_model
    pixels = torch.randn(2, 3, 28, 28)
    tower = KosmosG(SMALL).mllm.vision_model
    load_vision(tower, openai_clip(state))
    torch.testing.assert_close(tower(pixels), source(pixels), rtol=0, atol=0)

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    sizes = {name: getattr(SMALL.vision_config, name) for name in names}
    clip = CLIPVisionModel(CLIPVisionConfig(**sizes, hidden_act="quick_gelu")).eval()
    clip.save_pretrained(tmp_path)
    for given in (clip.state_dict(), tmp_path):
        load_vision(tower, given)
        last = clip(pixels).last_hidden_state
        post = next(module for name, module in clip.named_modules() if name.endswith("post_layernorm"))
        expected = torch.nn.functional.normalize(post(last), dim=-1)
        torch.testing.assert_close(tower(pixels), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"lacks model.embeddings.class_embedding"):
        load_vision(tower, {"nothing": torch.zeros(1)})


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_imported_folder_is_an_export(tmp_path: Path, tiny_sentencepiece: Path, shard_bytes: int) -> None:
    processor = KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, image_size=28, num_image_tokens=4)
    config = KosmosGConfig.from_dict(SMALL.to_dict())
    state = released(2)
    config.text_config.vocab_size = processor.vocab_size
    state["gpt_model.decoder.embed_tokens.weight"] = torch.randn(processor.vocab_size, 32)
    plan = plan_reference(trained(tmp_path / "checkpoint_stage2.pt", state), config)
    told: list[tuple[int, int]] = []
    folder = import_weights(
        plan, tmp_path / "export", processor, shard_bytes=shard_bytes, on_tensor=lambda *one: told.append(one)
    )
    total = len(plan.model) + len(plan.decoder)
    assert told == [(done, total) for done in range(1, total + 1)]
    assert (len(list(folder.glob("model*.safetensors"))) > 1) == (shard_bytes < 10**9)
    model, _ = load_export(folder)
    expected = plan.build()
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert ours.equal(theirs), name
    n = AlignerDecoder.from_pretrained(folder / "aligner_decoder")
    assert n.decoder_query.weight.equal(plan.build_decoder().decoder_query.weight)
    assert "xPos" in (folder / "README.md").read_text()


MEASURE = """
import sys, threading, time
from pathlib import Path
from kosmosg.config import KosmosGConfig
from kosmosg.convert import plan_reference, import_weights

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

peak = 0
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

plan = plan_reference(sys.argv[1], KosmosGConfig.from_pretrained(sys.argv[2]))
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
import_weights(plan, sys.argv[3], shard_bytes=10_000_000)
print(peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_import_streams(tmp_path: Path, suffix: str) -> None:
    state = released(3)
    config = KosmosGConfig.from_dict(SMALL.to_dict())
    config.text_config.ffn_dim = 120_000  # about 8 MB a matrix, 65 MB in all
    for block in range(2):
        for name, shape in (("fc1.weight", (120_000, 32)), ("fc1.bias", (120_000,)), ("fc2.weight", (32, 120_000))):
            state[f"gpt_model.decoder.layers.{block}.ffn.{name}"] = torch.zeros(shape)
        for kind in ("weight", "bias"):
            state[f"gpt_model.decoder.layers.{block}.ffn.ffn_layernorm.{kind}"] = torch.zeros(120_000)
    source = tmp_path / f"source.{suffix}"
    if suffix == "pt":
        torch.save({"model": state}, source)
    else:
        save_file({name: tensor.clone() for name, tensor in state.items()}, source)
    config.save_pretrained(tmp_path / "config")
    size = source.stat().st_size // 2**20
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "config"), str(tmp_path / "export")]
    # Otherwise glibc keeps freed blocks of this size for later, now more and now fewer, and the peak counts them.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert size > 60
    assert int(found.stdout) < 45  # MiB: the shard, the tensor being read, its finite mask
