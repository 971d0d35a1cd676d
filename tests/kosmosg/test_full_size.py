"""The published size, counted on the meta device: parameters and floating point operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.aligner import AlignerDecoder


@pytest.fixture(scope="module")
def parts() -> tuple[KosmosG, AlignerDecoder]:
    with torch.device("meta"):
        return (
            KosmosG(KosmosGConfig.paper()).eval().requires_grad_(False),
            AlignerDecoder(KosmosGConfig.paper()).eval().requires_grad_(False),
        )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_of_the_published_model(parts: tuple[KosmosG, AlignerDecoder]) -> None:
    model, decoder = parts
    assert count(model.mllm) == 1_662_375_936
    assert count(model.mllm.text_model) == 1_340_180_480
    assert count(model.mllm.vision_model) == 303_179_776
    assert count(model.mllm.image_to_text_projection) == 19_015_680
    assert count(model.aligner) == 225_461_760
    assert count(model.aligner) + count(decoder) == 476_031_488


@pytest.mark.parametrize(
    ("tokens", "language", "head", "m"), [(20, 48.4, 5.2, 19.6), (96, 233.7, 25.2, 35.4), (170, 416.4, 44.6, 51.3)]
)
def test_operations_of_a_prompt(
    parts: tuple[KosmosG, AlignerDecoder], tokens: int, language: float, head: float, m: float
) -> None:
    model, _ = parts
    embeddings = torch.empty(1, tokens, 2048, device="meta")
    rows = torch.empty(1, tokens, dtype=torch.long, device="meta")
    assert gigaflops(lambda: model.mllm.text_model.model(embeddings, rows)) == pytest.approx(language, rel=0.02)
    assert gigaflops(lambda: model.mllm.logits(embeddings)) == pytest.approx(head, rel=0.02)
    assert gigaflops(lambda: model.aligner(embeddings)) == pytest.approx(m, rel=0.02)


def test_operations_of_an_image_and_of_n(parts: tuple[KosmosG, AlignerDecoder]) -> None:
    model, decoder = parts
    pixels = torch.empty(1, 3, 224, 224, device="meta")
    tokens = torch.empty(1, 257, 1024, device="meta")
    assert gigaflops(lambda: model.mllm.vision_model(pixels)) == pytest.approx(162.0, rel=0.02)
    assert gigaflops(lambda: model.mllm.image_to_text_projection(tokens)) == pytest.approx(7.7, rel=0.02)
    assert gigaflops(lambda: decoder(torch.empty(1, 77, 768, device="meta"), 20)) == pytest.approx(9.7, rel=0.02)


def test_encoding_computes_no_logits(parts: tuple[KosmosG, AlignerDecoder]) -> None:
    model, _ = parts
    ids = torch.zeros(1, 20, dtype=torch.long, device="meta")
    states = gigaflops(lambda: model.mllm.states(ids))
    assert states == pytest.approx(48.4, rel=0.02)


def gigaflops(run: object) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()  # type: ignore[operator]
    return float(counter.get_total_flops()) / 1e9
