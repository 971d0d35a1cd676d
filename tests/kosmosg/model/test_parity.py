"""Agreement with the outputs of the original Kosmos-G code and of transformers' Kosmos-2, recorded in tests/golden."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.conditioners.alignernet import AlignerDecoder, AlignerNet
from kosmosg.convert import from_kosmos2, from_reference, load_vision
from kosmosg.model.mllm import KosmosGForConditionalGeneration
from kosmosg.model.vision import Resampler, VisionTower

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def golden(name: str) -> Any:
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, **TOLERANCE)


def sized(**parts: Any) -> KosmosGConfig:
    """A small configuration in which only the parts under test have the fixture's size."""
    small = KosmosGConfig.tiny(vocab_size=64)
    sub = {name: getattr(small, name).to_dict() | parts.get(name, {}) for name in ("text_config", "aligner_config")}
    vision = small.vision_config.to_dict() | parts.get("vision_config", {})
    return KosmosGConfig(**sub, vision_config=vision, latent_query_num=parts.get("latent_query_num", 4))


def decoder_cases() -> Iterator[Any]:
    for record in golden("kosmosg_decoder"):
        for case in record["cases"]:
            yield pytest.param(record, case, id=f"{record['tag']}-{case['name']}")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("record", "case"), list(decoder_cases()))
def test_language_model_agrees_with_the_original(record: Any, case: Any, attention: str) -> None:
    shape = record["config"]
    config = sized(
        text_config={
            "vocab_size": shape["vocab"],
            "embed_dim": shape["decoder_embed_dim"],
            "attention_heads": shape["decoder_attention_heads"],
            "ffn_dim": shape["decoder_ffn_embed_dim"],
            "layers": shape["decoder_layers"],
        },
        latent_query_num=shape["img_len"],
    )
    mllm = KosmosGForConditionalGeneration(config).eval()
    mllm.set_attn_implementation(attention)
    unused = ("embed_positions._float_tensor", "self_attn_sope.scale", "output_projection.weight")
    known = {name: value for name, value in record["state_dict"].items() if name not in unused}
    assert not mllm.text_model.model.load_state_dict(known, strict=True).missing_keys

    # The fixture feeds image features directly, so the same is done here: (N * Q, C) in reading order.
    features = case["img_features"]
    tokens = None if features is None else features.unflatten(0, (-1, shape["img_len"]))
    embeddings = mllm.embed(case["src_tokens"], case["img_gpt_input_mask"], image_tokens=tokens)
    real = case["src_tokens"] != 1
    states = mllm(inputs_embeds=embeddings, attention_mask=real.long()).last_hidden_state
    close(states[real], case["condition_B_T_C"][real])
    close(mllm.logits(states)[real], case["logits"][real])
    # Pads too, as stage 2 sees them: its reconstruction loss counts them.
    close(mllm.states(case["src_tokens"], case["img_gpt_input_mask"], image_tokens=tokens), case["condition_B_T_C"])


def test_vision_tower_agrees_with_the_original() -> None:
    (record,) = golden("kosmosg_vision")
    shape = record["config"]
    config = sized(
        vision_config={
            "image_size": shape["image"],
            "patch_size": shape["patch"],
            "hidden_size": shape["width"],
            "intermediate_size": 4 * shape["width"],
            "num_hidden_layers": shape["layers"],
            "num_attention_heads": shape["width"] // shape["head_width"],
        }
    )
    tower = VisionTower(config)
    config._attn_implementation = "sdpa"
    load_vision(tower, record["state_dict"])
    close(tower(record["pixels"]), record["out_T_B_C"].transpose(0, 1))


def test_resampler_agrees_with_the_original() -> None:
    (record,) = golden("kosmosg_connector")
    shape = record["config"]
    config = sized(
        text_config={"embed_dim": shape["output_dim"], "attention_heads": shape["heads"]},
        vision_config={"hidden_size": shape["input_dim"]},
        latent_query_num=shape["queries"],
    )
    config._attn_implementation = "sdpa"
    resampler = Resampler(config).eval()
    resampler.load_state_dict(record["state_dict"], strict=True)
    close(resampler(record["vision_features_B_S_C"]).flatten(0, 1), record["out_BQ_C"])


def aligner_case() -> tuple[AlignerNet, AlignerDecoder, list[Any]]:
    (record,) = golden("kosmosg_aligner")
    shape = record["config"]
    config = sized(
        text_config={"embed_dim": shape["mllm_dim"]},
        aligner_config={
            "d_model": shape["dim"],
            "layers": shape["layers"],
            "attention_heads": shape["heads"],
            "ffn_dim": shape["ffn"],
            "num_queries": shape["queries"],
            "max_position_embeddings": shape["n_pos"],
        },
    )
    m, n = AlignerNet(config).eval(), AlignerDecoder(config).eval()
    state = {ours_of(name): value for name, value in record["state_dict"].items()}
    ours = {name: value for name, value in state.items() if name in m.state_dict()}
    theirs = {name: value for name, value in state.items() if name in n.state_dict()}
    assert len(ours) + len(theirs) == len(state)
    m.load_state_dict(ours, strict=True)
    n.load_state_dict(theirs, strict=True)
    return m, n, record["cases"]


def ours_of(name: str) -> str:
    return f"{name}.weight" if name in ("encoder_query", "decoder_query") else name


@pytest.mark.parametrize("case", range(len(golden("kosmosg_aligner")[0]["cases"])))
def test_aligner_its_losses_and_gradients_agree_with_the_original(case: int) -> None:
    m, n, cases = aligner_case()
    record = cases[case]
    states = record["condition"]
    condition = m(states, record["padding_mask"])
    close(condition, record["M_out"])
    length = states.shape[1]
    rebuilt = n(condition, length)
    close(rebuilt, record["N_out"])

    # The original's stage-2 loss; pads are reconstructed too.
    mse = (condition - record["clip_embed"]).square().mean()
    reconstruction = (rebuilt - states).square().mean() * 77 / length
    assert mse.item() == pytest.approx(record["mse_loss"], rel=1e-5)
    assert reconstruction.item() == pytest.approx(record["rec_loss"], rel=1e-5)
    (mse + reconstruction).backward()
    gradients = {**dict(m.named_parameters()), **dict(n.named_parameters())}
    for name, norm in record["grad_norms"].items():
        found = gradients[ours_of(name)].grad
        assert found is not None, name
        assert float(found.norm()) == pytest.approx(norm, rel=1e-4, abs=1e-6), name


def test_aligner_without_padding_needs_no_mask() -> None:
    m, _, cases = aligner_case()
    record = next(case for case in cases if not case["padding_mask"].any())
    close(m(record["condition"]), record["M_out"])


def pipeline_model() -> tuple[KosmosG, Any]:
    (record,) = golden("kosmosg_pipeline")
    shape, vision, aligner = record["config"], record["config"]["vision"], record["config"]["aligner"]
    config = KosmosGConfig(
        text_config={
            "vocab_size": shape["vocab"],
            "embed_dim": shape["dim"],
            "attention_heads": shape["heads"],
            "layers": shape["layers"],
            "ffn_dim": shape["ffn"],
        },
        vision_config={
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
        },
        latent_query_num=shape["queries"],
        aligner_config={
            "d_model": aligner["dim"],
            "layers": aligner["layers"],
            "attention_heads": aligner["heads"],
            "ffn_dim": aligner["ffn"],
            "max_position_embeddings": aligner["n_pos"],
        },
    )
    return from_reference(record["state_dict"], config), record


def test_whole_conditioning_path_agrees_with_the_original() -> None:
    model, record = pipeline_model()
    batch = {
        "input_ids": record["src_tokens"],
        "image_embeds_position_mask": record["img_gpt_input_mask"],
        "pixel_values": record["pixels"],
    }
    close(model.mllm.image_tokens(record["pixels"]).flatten(0, 1), record["image_features"])
    images = record["config"]["num_images_per_prompt"]
    assert record["negative_tokens"].tolist() == [[0]]  # so the null condition is what the original used
    for condition in (model.encode(batch), model.encode(batch, {"input_ids": record["negative_tokens"]})):
        # The original stacks all negatives, then all positives, each repeated prompt after prompt.
        stacked = [part.repeat(images, 1, 1) for part in (condition.negative, condition.positive)]
        close(torch.cat(stacked), record["condition"])


def kosmos2_model(record: Any) -> KosmosG:
    text = {k: v for k, v in record["config"]["text_config"].items() if k != "model_type"}
    vision = {k: v for k, v in record["config"]["vision_config"].items() if k != "model_type"}
    config = KosmosGConfig(
        text_config=text,
        vision_config=vision,
        latent_query_num=record["config"]["latent_query_num"],
        aligner_config=KosmosGConfig.tiny().aligner_config.to_dict(),
    )
    return from_kosmos2(record["state_dict"], config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["kosmos2_single", "kosmos2_rightpad"])
def test_language_model_agrees_with_kosmos2(name: str, attention: str) -> None:
    record = golden(name)
    mllm = kosmos2_model(record).mllm
    mllm.set_attn_implementation(attention)
    inputs, expected = record["inputs"], record["outputs"]
    out = mllm(**inputs, labels=record["labels"], output_hidden_states=True)
    real = inputs["attention_mask"].bool()
    close(out.logits[real], expected["logits"][real])
    close(mllm.image_tokens(inputs["pixel_values"]), expected["image_embeds"])
    assert len(out.hidden_states) == len(expected["hidden_states"])
    for found, state in zip(out.hidden_states, expected["hidden_states"], strict=True):
        close(found[real], state[real])
    if record["labels"] is not None:
        close(out.loss, expected["loss"])


def test_gradients_agree_with_kosmos2() -> None:
    record, expected = golden("kosmos2_single"), golden("kosmos2_single_grads")
    mllm = kosmos2_model(record).mllm
    loss = mllm(**record["inputs"], labels=record["labels"]).loss
    close(loss, expected["loss"])
    loss.backward()
    parameters = dict(mllm.named_parameters())
    for name, gradient in expected["grads"].items():
        if name == "text_model.lm_head.weight":  # tied: recorded with the embeddings
            continue
        found = parameters[name].grad
        assert found is not None, name
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_text_alone_agrees_with_kosmos2() -> None:
    record = golden("kosmos2_textonly")
    close(kosmos2_model(record).mllm(**record["inputs"]).logits, record["outputs"]["logits"])


def test_initialisation_has_the_statistics_of_the_original() -> None:
    statistics = golden("kosmosg_init_stats")
    torch.manual_seed(0)
    text = {"vocab_size": 1000, "embed_dim": 512, "attention_heads": 8, "layers": 24, "ffn_dim": 2048}
    parameters = dict(KosmosGForConditionalGeneration(sized(text_config=text)).text_model.model.named_parameters())
    for name, (shape, mean, std, largest) in statistics.items():
        weight = parameters[name].detach()
        assert list(weight.shape) == shape
        error = 4 * max(std, 1e-12) / weight.numel() ** 0.5  # both are samples, so their means differ by this much
        assert float(weight.mean()) == pytest.approx(mean, abs=2 * error + 1e-9), name
        assert float(weight.std(unbiased=False)) == pytest.approx(std, rel=0.05, abs=1e-9), name
        assert float(weight.abs().max()) == pytest.approx(largest, rel=0.15 if "embed" in name else 0.01), name
    assert not parameters["embed_tokens.weight"][1].any()
