"""The maps that AlignerNet is compared with: same door, same files, same place in a stage."""

from pathlib import Path

import pytest
import torch

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.conditioners.base import (
    LINEAR_LENGTH,
    ConditionerKind,
    LinearConditioner,
    MLPConditioner,
    make_conditioner,
    with_conditioner,
)
from kosmosg.errors import ConfigError, PromptError
from kosmosg_platform.training.initial_model import replace_conditioner

PAD = 1


def config() -> KosmosGConfig:
    return KosmosGConfig.tiny(vocab_size=200)


@pytest.mark.parametrize(("kind", "vectors"), [("alignernet", 77), ("linear", 77 * LINEAR_LENGTH), ("mlp", 77)])
def test_every_kind_gives_conditions_that_do_not_depend_on_padding(kind: ConditionerKind, vectors: int) -> None:
    torch.manual_seed(0)
    model = KosmosG(with_conditioner(config(), kind)).eval()
    ids = torch.tensor([[0, 7, 8, 9], [0, 7, PAD, PAD]])
    batch = model.encode({"input_ids": ids, "attention_mask": ids != PAD})
    alone = model.encode({"input_ids": ids[1:, :2]})
    assert batch.positive.shape == batch.negative.shape == (2, vectors, 32)
    torch.testing.assert_close(batch.positive[1:], alone.positive, atol=1e-5, rtol=1e-5)
    assert (batch.positive[0] - batch.positive[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_an_export_keeps_its_kind(kind: ConditionerKind, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = KosmosG(with_conditioner(config(), kind)).eval()
    model.save_pretrained(tmp_path)
    again = KosmosG.from_pretrained(tmp_path).eval()
    ids = {"input_ids": torch.tensor([[0, 7, 8]])}
    torch.testing.assert_close(again.encode(ids).positive, model.encode(ids).positive)


def test_a_linear_map_keeps_tokens_apart_and_the_other_mixes_them() -> None:
    torch.manual_seed(0)
    states = torch.randn(1, 5, 64)
    changed = states.clone()
    changed[0, 2] += 1.0
    moved = {}
    kinds: dict[ConditionerKind, type] = {"linear": LinearConditioner, "mlp": MLPConditioner}
    for kind, of in kinds.items():
        connector = make_conditioner(with_conditioner(config(), kind)).eval()
        assert isinstance(connector, of)
        moved[kind] = ((connector(states) - connector(changed)).abs().amax(dim=(0, 2)) > 0).nonzero().flatten().tolist()
    assert moved["linear"] == [2]
    assert len(moved["mlp"]) == 77


def test_a_stage_puts_another_connector_in_and_leaves_what_reads() -> None:
    torch.manual_seed(0)
    model = KosmosG(config())
    before = {name: value.clone() for name, value in model.mllm.state_dict().items()}
    replace_conditioner(model, "linear")
    assert isinstance(model.aligner, LinearConditioner)
    assert model.config.aligner_config.kind == "linear"
    assert all(torch.equal(value, before[name]) for name, value in model.mllm.state_dict().items())


def test_mistakes_are_told() -> None:
    linear = with_conditioner(config(), "linear")
    with pytest.raises(PromptError, match="309 tokens long, this connector passes on at most 308"):
        make_conditioner(linear)(torch.zeros(1, 309, 64))
    with pytest.raises(ConfigError, match="'linear' already"):
        with_conditioner(linear, "mlp")
    unknown = config()
    unknown.aligner_config.kind = "magic"
    with pytest.raises(ConfigError, match="'magic'; choose one of alignernet, linear, mlp"):
        make_conditioner(unknown)
