"""docs/model.md: what a stranger copies from it works, here with small stand-ins for the published files."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmosg import KosmosGConfig, KosmosGProcessor
from kosmosg.checkpoint.export import parameter_shapes
from kosmosg.convert.key_mapping import REFERENCE_NAMES, rename

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "model.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def desk(tmp_path: Path, tiny_sd_parts: Path, tiny_sentencepiece: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that the page names, small; "the published size" is small too."""
    vocabulary = KosmosGProcessor.from_sentencepiece(tiny_sentencepiece).vocab_size
    small = KosmosGConfig.tiny(vocab_size=vocabulary).to_dict()
    monkeypatch.setattr(KosmosGConfig, "paper", classmethod(lambda cls: cls.from_dict(small)))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    shapes = parameter_shapes(KosmosGConfig.paper())
    keys = json.loads((ROOT / "tests" / "golden" / "kosmosg_checkpoint_keys.json").read_text())
    released = {name: shapes[ours] for name in keys if (ours := rename(name, REFERENCE_NAMES)) in shapes}
    torch.save({"model": {name: 0.1 * torch.randn(shape) for name, shape in released.items()}}, "checkpoint_final.pt")
    shutil.copy(tiny_sentencepiece, "sentencepiece.bpe.model")

    text = {
        name: small["text_config"][name] for name in ("vocab_size", "embed_dim", "layers", "attention_heads", "ffn_dim")
    }
    vision = {name: value for name, value in small["vision_config"].items() if name != "model_type"}
    config = Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=small["latent_query_num"])
    Kosmos2ForConditionalGeneration(config).save_pretrained("kosmos-2-patch14-224")

    shutil.copytree(tiny_sd_parts, "stable-diffusion-v1-5/stable-diffusion-v1-5")
    unet = UNet2DConditionModel.from_pretrained(tiny_sd_parts, subfolder="unet")
    canny = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    canny.save_pretrained("lllyasviel/control_v11p_sd15_canny")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="watercolour.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save("cat.png")
    Image.fromarray(noise).save("edges.png")
    return tmp_path


@pytest.mark.slow
def test_the_page_works(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typer_testing = pytest.importorskip("typer.testing", reason="the command line belongs to the extra `platform`")
    from jobs.experiment import load
    from kosmosg_platform.cli.main import app

    assert [kind for kind, _ in BLOCKS] == ["python", "bash", "python", "bash", "python", "python"]
    for kind, code in BLOCKS:
        if kind == "python":
            assert len([line for line in code.splitlines() if line]) <= 10
            exec(compile(code, "docs/model.md", "exec"), {})
            continue
        for line in code.splitlines():
            program, verb, *arguments = shlex.split(line)
            assert program == "kosmosg"
            if verb == "run":  # weeks at full size: that the settings are understood is enough here
                job, preset, *settings = arguments
                load(job, preset, settings)
                shutil.copytree("start", f"runs/{job}/export")
                continue
            done = typer_testing.CliRunner().invoke(app, [verb, *arguments], catch_exceptions=False)
            assert done.exit_code == 0, done.output
    assert Image.open("ball.png").size == (32, 32)
    assert Image.open("out.png").size == Image.open("out2.png").size == (16, 16)
    assert "xPos" not in (desk / "start" / "README.md").read_text()
    assert capsys.readouterr().out.startswith("[")  # the answers


def test_the_page_counts_what_the_model_has() -> None:
    with torch.device("meta"):
        from kosmosg import KosmosG

        model = KosmosG(KosmosGConfig())
    parts = (model.mllm.vision_model, model.mllm.image_to_text_projection, model.mllm.text_model, model.aligner)
    for part in parts:
        assert f"{sum(parameter.numel() for parameter in part.parameters()):,}" in PAGE
