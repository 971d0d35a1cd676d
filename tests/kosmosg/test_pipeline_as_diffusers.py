"""What a user of diffusers expects of any pipeline: components, callbacks, switches, options of `from_pretrained`.

diffusers' own `PipelineTesterMixin` passes too; docs/model.md says which of its tests do not apply.
"""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.hooks.group_offloading import ModuleGroup
from PIL import Image
from torch import nn

from kosmosg import CheckpointError, ConfigError, KosmosG, KosmosGPipeline, KosmosGProcessor, Prompt
from kosmosg.checkpoint.export import save_export
from tests.kosmosg.pipeline_calls import distance

CALL: dict[str, Any] = {"prompt": "a cat", "num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "np"}


def quiet(pipe: KosmosGPipeline) -> KosmosGPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: KosmosGPipeline, **options: Any) -> Any:
    return pipe(**CALL | options, generator=torch.Generator().manual_seed(0)).images


# -- components ------------------------------------------------------------------------------------------------------


def test_only_the_safety_checker_and_its_extractor_are_optional(pipe: KosmosGPipeline, tmp_path: Path) -> None:
    assert set(KosmosGPipeline._optional_components) == {"safety_checker", "feature_extractor"}
    needed = {"model", "processor", "unet", "vae", "scheduler"}
    assert set(pipe.components) == needed | set(KosmosGPipeline._optional_components)
    expected = generate(pipe)
    pipe.save_pretrained(tmp_path)
    loaded = quiet(KosmosGPipeline.from_pretrained(tmp_path))
    assert loaded.safety_checker is loaded.feature_extractor is None
    assert distance(generate(loaded), expected) < 1e-5
    again = quiet(KosmosGPipeline(**loaded.components))
    assert distance(generate(again), expected) < 1e-5
    for name in sorted(needed):
        shutil.move(tmp_path / name, tmp_path / "away")
        with pytest.raises((OSError, ValueError)):
            KosmosGPipeline.from_pretrained(tmp_path)
        shutil.move(tmp_path / "away", tmp_path / name)


def test_a_stock_pipeline_becomes_ours_and_back(pipe: KosmosGPipeline, stock: StableDiffusionPipeline) -> None:
    expected = generate(pipe)
    ours = quiet(KosmosGPipeline.from_pipe(stock, model=pipe.model, processor=pipe.processor))
    assert distance(generate(ours), expected) == 0
    back = StableDiffusionPipeline.from_pipe(
        ours, text_encoder=stock.text_encoder, tokenizer=stock.tokenizer, image_encoder=None
    )
    assert back.unet is stock.unet
    for name, value in stock.config.items():
        assert name.startswith("_") or back.config[name] == value


# -- callbacks -------------------------------------------------------------------------------------------------------


def test_callbacks_may_ask_for_every_tensor_that_is_named(pipe: KosmosGPipeline) -> None:
    seen: list[set[str]] = []

    def callback(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(tensors))
        return tensors

    names = pipe._callback_tensor_inputs
    generate(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert seen
    assert all(tensors == set(names) == {"latents", "prompt_embeds", "negative_prompt_embeds"} for tensors in seen)
    with pytest.raises(ValueError, match="has to be in"):
        generate(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["noise"])


@pytest.mark.parametrize("through", ["the pipeline", "the callback's argument"])
def test_a_callback_changes_the_guidance_of_the_run(pipe: KosmosGPipeline, through: str) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scales: list[float] = []

    def callback(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        changed = pipe if through == "the pipeline" else running
        changed._guidance_scale += 2.0
        scales.append(pipe.guidance_scale)
        return tensors

    plain = generate(pipe)
    changed = generate(pipe, callback_on_step_end=callback)
    assert scales == [6.0, 8.0, 10.0]
    assert pipe.num_timesteps == 3
    assert pipe.guidance_scale == 10.0
    assert pipe.do_classifier_free_guidance
    assert distance(plain, changed) > 1e-4
    assert distance(generate(pipe), plain) == 0


def test_a_callback_stops_the_run_through_the_pipeline(pipe: KosmosGPipeline) -> None:
    calls: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))

    def stop(running: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return tensors

    generate(pipe, num_inference_steps=10, callback_on_step_end=stop)
    handle.remove()
    assert pipe.interrupt
    assert len(calls) == 2


def test_diffusers_ready_made_callbacks_work(pipe: KosmosGPipeline) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    rows: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    generate(pipe, num_inference_steps=6, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    handle.remove()
    assert rows == [2, 2, 2, 2, 1, 1]  # no guidance once half of the steps are done


# -- switches --------------------------------------------------------------------------------------------------------


def test_freeu_is_that_of_the_stock_pipeline_and_leaves_nothing(pipe: KosmosGPipeline) -> None:
    plain = generate(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    freed = generate(pipe)
    condition = pipe.encode("a cat")
    stock = pipe.decoder(
        prompt_embeds=condition.positive,
        negative_prompt_embeds=condition.negative,
        generator=torch.Generator().manual_seed(0),
        **{name: value for name, value in CALL.items() if name != "prompt"},
    ).images
    assert distance(freed, plain) > 1e-4
    assert distance(freed, stock) == 0
    pipe.disable_freeu()
    assert distance(generate(pipe), plain) == 0


def test_fused_projections_change_no_image_and_come_apart_again(pipe: KosmosGPipeline) -> None:
    plain, processors = generate(pipe), {type(each) for each in pipe.unet.attn_processors.values()}
    pipe.unfuse_qkv_projections()  # nothing is fused: no error, and nothing happens
    assert distance(generate(pipe), plain) == 0
    pipe.fuse_qkv_projections()
    assert {type(each).__name__ for each in pipe.unet.attn_processors.values()} == {"FusedAttnProcessor2_0"}
    assert distance(generate(pipe), plain) < 1e-4
    pipe.unfuse_qkv_projections()
    assert {type(each) for each in pipe.unet.attn_processors.values()} == processors
    assert distance(generate(pipe), plain) < 1e-5


# -- options of from_pretrained --------------------------------------------------------------------------------------


@pytest.fixture
def folders(pipe: KosmosGPipeline, stock: StableDiffusionPipeline, tmp_path: Path) -> dict[str, Path]:
    """A pipeline, an export, and a decoder whose U-Net has another variant of its weights."""
    pipe.save_pretrained(tmp_path / "pipeline")
    save_export(pipe.model, pipe.processor, tmp_path / "export")
    stock.save_pretrained(tmp_path / "decoder")
    with torch.no_grad():
        for weight in stock.unet.parameters():
            weight.mul_(1.25)
    for where in ("decoder", "pipeline"):
        stock.unet.save_pretrained(tmp_path / where / "unet", variant="ema")
    return {name: tmp_path / name for name in ("pipeline", "export", "decoder")}


WAYS = pytest.mark.parametrize(
    ("source", "named"),
    [("pipeline", False), ("export", True), ("pipeline", True)],
    ids=["pipeline folder", "export and decoder", "pipeline folder and decoder"],
)


@WAYS
def test_a_variant_is_loaded_where_a_component_has_it(folders: dict[str, Path], source: str, named: bool) -> None:
    decoder = {"decoder": folders["decoder"]} if named else {}
    plain = KosmosGPipeline.from_pretrained(folders[source], **decoder)
    other = KosmosGPipeline.from_pretrained(folders[source], **decoder, variant="ema")
    weights = zip(plain.unet.parameters(), other.unet.parameters(), strict=True)
    assert all(torch.equal(one * 1.25, changed) for one, changed in weights)
    for name in ("vae", "model"):
        both = zip(getattr(plain, name).parameters(), getattr(other, name).parameters(), strict=True)
        assert all(torch.equal(one, same) for one, same in both)
    with pytest.raises(ValueError, match="You are trying to load the model files of the `variant=fp16`"):
        KosmosGPipeline.from_pretrained(folders[source], **decoder, variant="fp16")


@WAYS
def test_a_device_can_be_named(folders: dict[str, Path], source: str, named: bool, pipe: KosmosGPipeline) -> None:
    decoder = {"decoder": folders["decoder"], "scheduler": pipe.scheduler} if named else {}
    loaded = quiet(KosmosGPipeline.from_pretrained(folders[source], **decoder, device_map="cpu"))
    plain = quiet(KosmosGPipeline.from_pretrained(folders[source], **decoder))
    assert distance(generate(loaded), generate(plain)) < 1e-5
    if torch.cuda.is_available():
        loaded = KosmosGPipeline.from_pretrained(folders[source], **decoder, device_map="cuda")
        modules = [part for part in loaded.components.values() if isinstance(part, nn.Module)]
        assert {part.device.type for part in modules} == {"cuda"}


def test_a_strategy_of_several_devices_is_for_pipeline_folders(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r'device_map="balanced" is for pipeline folders; write one with save_pre'):
        KosmosGPipeline.from_pretrained(folders["export"], decoder=folders["decoder"], device_map="balanced")


@WAYS
def test_each_component_can_have_its_own_precision(folders: dict[str, Path], source: str, named: bool) -> None:
    decoder = {"decoder": folders["decoder"]} if named else {}
    precision = {"unet": torch.bfloat16, "model": torch.float16, "default": torch.float64}
    loaded = KosmosGPipeline.from_pretrained(folders[source], **decoder, dtype=precision)
    assert loaded.unet.dtype == torch.bfloat16
    assert loaded.model.dtype == torch.float16
    assert loaded.vae.dtype == torch.float64
    one = KosmosGPipeline.from_pretrained(folders[source], **decoder, dtype=torch.bfloat16)
    assert one.unet.dtype == one.model.dtype == one.vae.dtype == torch.bfloat16


def test_a_decoder_given_as_a_pipeline_keeps_its_precision(
    folders: dict[str, Path], stock: StableDiffusionPipeline
) -> None:
    KosmosGPipeline.from_pretrained(folders["pipeline"], decoder=stock, dtype=torch.bfloat16)
    assert stock.unet.dtype == stock.vae.dtype == torch.float32


def test_a_damaged_variant_is_not_replaced_by_other_weights(folders: dict[str, Path]) -> None:
    damaged = next((folders["decoder"] / "unet").glob("*.ema.*"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="has no usable unet/"):
        KosmosGPipeline.from_pretrained(folders["export"], decoder=folders["decoder"], variant="ema")


# -- offloading groups of layers -------------------------------------------------------------------------------------


@pytest.fixture
def put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, what diffusers offloads stays where it is, so it is made unusable until it is loaded again."""
    kept: dict[int, torch.Tensor] = {}

    def weights(group: ModuleGroup) -> list[torch.Tensor]:
        return [*group.parameters, *(weight for module in group.modules for weight in module.parameters())]

    def offload(group: ModuleGroup) -> None:
        for weight in weights(group):
            kept.setdefault(id(weight), weight.data)
            weight.data = torch.full_like(weight.data, torch.nan)

    def onload(group: ModuleGroup) -> None:
        for weight in weights(group):
            weight.data = kept[id(weight)]

    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_every_group_of_layers_is_loaded_before_it_is_used(
    kind: str, tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path, put_away: None
) -> None:
    pipe = quiet(KosmosGPipeline(copy.deepcopy(tiny_model), tiny_processor, decoder=tiny_sd_parts))
    prompt = Prompt("<i> in the snow", images=[Image.new("RGB", (32, 32), "red")])
    expected = generate(pipe, prompt=prompt, negative_prompt="a dog")
    pipe.encoder.clear()
    cpu = torch.device("cpu")
    pipe.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, num_blocks_per_group=1)
    assert all(weight.isnan().all() for weight in pipe.unet.conv_in.parameters())
    for _ in range(2):
        assert distance(generate(pipe, prompt=prompt, negative_prompt="a dog"), expected) < 1e-5
    assert all(weight.isnan().all() for weight in pipe.model.aligner.parameters())  # and put away again
