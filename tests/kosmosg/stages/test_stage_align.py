"""Stage 2 is the original's: its losses and gradients, what moves and what stays, and that it learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kosmosg.conditioners.alignernet import AlignerDecoder, AlignerNet
from kosmosg.config import KosmosGConfig
from kosmosg.data.collate.align import AlignCollate
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor
from kosmosg.stages import Stage
from kosmosg.stages.align import AlignObjective, AlignStage, align_losses

RECORD = torch.load(Path(__file__).parents[2] / "golden" / "kosmosg_aligner.pt", weights_only=True)[0]
WORDS = ["a cat", "a dog in the snow.", "a red jacket and a fish in the sea", ""]


@pytest.fixture(scope="module")
def text_encoder(tiny_sd_parts: Path) -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(tiny_sd_parts / "text_encoder")


@pytest.fixture(scope="module")
def batch(processor: KosmosGProcessor, tiny_sd_parts: Path, place: Any) -> dict[str, torch.Tensor]:
    collate = AlignCollate(processor, CLIPTokenizer.from_pretrained(tiny_sd_parts / "tokenizer"))
    return collate([(place("caption", n), {"id": str(n), "text": text}) for n, text in enumerate(WORDS)])


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: case["name"])
def test_losses_and_gradients_are_the_originals(case: dict[str, Any]) -> None:
    shape = RECORD["config"]
    config = KosmosGConfig.tiny()
    config.text_config.embed_dim = shape["mllm_dim"]
    aligner = config.aligner_config
    aligner.d_model, aligner.layers, aligner.attention_heads = shape["dim"], shape["layers"], shape["heads"]
    aligner.ffn_dim, aligner.num_queries, aligner.max_position_embeddings = (
        shape["ffn"],
        shape["queries"],
        shape["n_pos"],
    )
    parts = {"": AlignerNet(config), "n": AlignerDecoder(config)}
    ours = {
        name.replace("query.weight", "query"): parameter
        for part in parts.values()
        for name, parameter in part.named_parameters()
    }
    assert ours.keys() == RECORD["state_dict"].keys()
    with torch.no_grad():
        for name, value in RECORD["state_dict"].items():
            ours[name].copy_(value)
    states = case["condition"]
    condition = parts[""](states, case["padding_mask"])
    rebuilt = parts["n"](condition, states.shape[1])
    matching, reconstruction = align_losses(condition, case["clip_embed"], rebuilt, states)
    assert matching.item() == pytest.approx(case["mse_loss"], rel=1e-5)
    assert reconstruction.item() == pytest.approx(case["rec_loss"], rel=1e-5)
    (matching + reconstruction).backward()
    norms = {name: float(parameter.grad.norm()) for name, parameter in ours.items()}
    assert norms == pytest.approx(case["grad_norms"], rel=1e-3, abs=1e-5)


def test_the_factor_weighs_states_like_queries() -> None:
    states, rebuilt = torch.zeros(2, 5, 8), torch.ones(2, 5, 8)
    matching, reconstruction = align_losses(torch.ones(2, 24, 4), torch.zeros(2, 24, 4), rebuilt, states)
    assert (float(matching), float(reconstruction)) == pytest.approx((1.0, 24 / 5))


def test_only_aligner_and_its_decoder_move(new_model: Any, text_encoder: CLIPTextModel, batch: Any, train: Any) -> None:
    stage = AlignStage(new_model(), text_encoder)
    assert isinstance(stage, Stage)
    assert {name.split(".")[0] + "." + name.split(".")[1] for name, _ in stage.trainable()} == {
        "model.aligner", "decoder.decoder_query", "decoder.decoder", "decoder.decoder_proj"
    }  # fmt: skip
    before = {name: parameter.clone() for name, parameter in stage.named_parameters()}
    train(stage, batch, steps=1, lr=1e-3)
    trained = {name for name, _ in stage.trainable()}
    for name, parameter in stage.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained), name
    assert stage.export() is stage.model
    assert not any(name.startswith("decoder") for name, _ in stage.export().named_parameters())


def test_it_goes_on_with_a_given_decoder(new_model: Any, text_encoder: CLIPTextModel, batch: Any, train: Any) -> None:
    """Model and N of one stage 2 make another that continues it: the same loss at once, not that of a fresh N."""
    first = AlignStage(new_model(), text_encoder)
    train(first, batch, steps=10, lr=3e-3)
    model, decoder = first.export(), first.decoder
    second = AlignStage(model, text_encoder, decoder=decoder)
    assert second.decoder is decoder
    torch.testing.assert_close(second(batch).loss, first(batch).loss)
    fresh = AlignStage(model, text_encoder)(batch)
    assert float(fresh.metrics["reconstruction"]) > float(second(batch).metrics["reconstruction"])
    assert {name for name, _ in second.trainable()} == {name for name, _ in first.trainable()}


@pytest.mark.parametrize(
    ("part", "name", "size"),
    [("text_config", "embed_dim", 32), ("aligner_config", "num_queries", 7), ("aligner_config", "d_model", 16)],
)
def test_a_decoder_of_another_model_is_refused(
    part: str, name: str, size: int, new_model: Any, text_encoder: CLIPTextModel
) -> None:
    config = KosmosGConfig.tiny()
    ours = getattr(getattr(config, part), name)
    setattr(getattr(config, part), name, size)
    with pytest.raises(ConfigError, match=rf"{part}\.{name} {size}, the model has {ours}; take"):
        AlignStage(new_model(), text_encoder, decoder=AlignerDecoder(config))


def test_it_learns_a_batch(new_model: Any, text_encoder: CLIPTextModel, batch: Any, train: Any) -> None:
    losses = train(AlignStage(new_model(), text_encoder), batch, steps=40, lr=3e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_metrics_are_the_parts_of_the_loss(new_model: Any, text_encoder: CLIPTextModel, batch: Any) -> None:
    stage = AlignStage(new_model(), text_encoder, AlignObjective(reconstruction=0.5))
    output = stage(batch)
    metrics = output.metrics
    torch.testing.assert_close(output.loss, metrics["matching"] + 0.5 * metrics["reconstruction"])
    assert list(metrics) == ["loss", "matching", "reconstruction", "captions_shortened"]
    assert not any(value.requires_grad for value in metrics.values())


def test_frozen_language_model_drops_out_only_if_asked(new_model: Any, text_encoder: CLIPTextModel, batch: Any) -> None:
    noisy = AlignStage(new_model(dropout=0.1), text_encoder)
    others = batch | {"seed": batch["seed"] + 100}
    assert not torch.equal(noisy(batch).loss, noisy(others).loss)
    quiet = AlignStage(new_model(dropout=0.1), text_encoder, AlignObjective(dropout=False))
    assert torch.equal(quiet(batch).loss, quiet(others).loss)
    assert not noisy.text_encoder.training
    noisy.eval()
    assert torch.equal(noisy(batch).loss, noisy(others).loss)


def test_checkpointing_changes_nothing(
    new_model: Any, text_encoder: CLIPTextModel, batch: Any, gradients: Callable[..., dict[str, torch.Tensor]]
) -> None:
    torch.manual_seed(0)
    stage = AlignStage(new_model(dropout=0.1), text_encoder)
    plain = gradients(stage, batch)
    stage.checkpoint_activations()
    torch.testing.assert_close(gradients(stage, batch), plain)


def test_bfloat16_is_close(new_model: Any, text_encoder: CLIPTextModel, batch: Any) -> None:
    import copy

    stage = AlignStage(new_model(), copy.deepcopy(text_encoder))
    exact = stage(batch).loss.detach()
    output = stage.bfloat16()(batch)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for _, parameter in stage.trainable() if parameter.grad is not None)
    torch.testing.assert_close(output.loss.detach(), exact, rtol=0.05, atol=0.0)


def test_what_does_not_fit_is_refused(new_model: Any, text_encoder: CLIPTextModel, batch: Any) -> None:
    wide = CLIPTextModel(CLIPTextConfig(vocab_size=99, hidden_size=48, num_hidden_layers=1, num_attention_heads=4))
    with pytest.raises(ConfigError, match=r"width 32.*width 48"):
        AlignStage(new_model(), wide)
    stage = AlignStage(new_model(), text_encoder)
    with pytest.raises(ConfigError, match=r"\(4, 77, 32\).*\(4, 24, 32\)"):
        stage(batch | {"clip_input_ids": batch["clip_input_ids"][:, :24]})
    with pytest.raises(ConfigError, match="reconstruction is -1"):
        AlignObjective(reconstruction=-1)


LONG = "a cat in the snow and a dog in the grass and a ball in the sea and a tree in the sand and a fish in the house"


@pytest.mark.parametrize(("length", "clip_length"), [(12, 77), (200, 20), (14, 20), (7, 9), (2, 3)])
@pytest.mark.parametrize("caption", [LONG, LONG.replace(" ", "  "), LONG.replace(" ", "")])
def test_both_models_read_the_same_words(
    processor: KosmosGProcessor, tiny_sd_parts: Path, place: Any, caption: str, length: int, clip_length: int
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd_parts / "tokenizer")
    collate = AlignCollate(processor, tokenizer, clip_length, length)
    batch = collate([(place("caption", n), {"id": str(n), "text": text}) for n, text in enumerate((caption, ""))])
    read = processor.decode(batch["input_ids"][0].tolist())
    assert caption.replace(" ", "").startswith(read.replace(" ", ""))
    expected = tokenizer([read], padding="max_length", max_length=clip_length, return_tensors="pt")["input_ids"]
    assert expected.shape == (1, clip_length)  # so that nothing of it was cut
    assert batch["clip_input_ids"][:1].equal(expected)
    assert batch["shortened"].tolist() == [1.0, 0.0]
    following = caption[len(read.rstrip()) :].split(" ")
    if " " in caption and read:  # one more word would have been too long for one of them
        longer = f"{read} {next(word for word in following if word)}"
        too_long = len(processor.sequence([longer])[0]) > length, len(tokenizer(longer)["input_ids"]) > clip_length
        assert any(too_long) or "  " in caption


def test_the_share_of_shortened_captions_is_a_metric(
    new_model: Any, text_encoder: CLIPTextModel, processor: KosmosGProcessor, tiny_sd_parts: Path, place: Any
) -> None:
    collate = AlignCollate(processor, CLIPTokenizer.from_pretrained(tiny_sd_parts / "tokenizer"), length=12)
    batch = collate(
        [(place("caption", n), {"id": str(n), "text": text}) for n, text in enumerate((LONG, *WORDS[:1], LONG, ""))]
    )
    metrics = AlignStage(new_model(), text_encoder)(batch).metrics
    assert float(metrics["captions_shortened"]) == 0.5
