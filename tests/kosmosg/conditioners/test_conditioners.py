"""The maps that AlignerNet is compared with: same interface, same files, same place in a stage."""

from pathlib import Path

import pytest
import torch

from kosmosg import KosmosG, KosmosGConfig
from kosmosg.conditioners.base import CONDITIONERS, make_conditioner, with_conditioner
from kosmosg.conditioners.linear import VECTORS_PER_QUERY, LinearConditioner
from kosmosg.conditioners.mlp import MLPConditioner
from kosmosg.config import KosmosGAlignerConfig
from kosmosg.errors import ConfigError, PromptError
from kosmosg.layers.initialisation import linear
from kosmosg.layers.magneto import KosmosGPreTrainedModel
from kosmosg_platform.training.initial_model import ModelConfig, replace_conditioner

PAD = 1


def config() -> KosmosGConfig:
    return KosmosGConfig.tiny(vocab_size=200)


@pytest.mark.parametrize(("kind", "vectors"), [("alignernet", 77), ("linear", 77 * VECTORS_PER_QUERY), ("mlp", 77)])
def test_every_kind_gives_conditions_that_do_not_depend_on_padding(kind: str, vectors: int) -> None:
    torch.manual_seed(0)
    model = KosmosG(with_conditioner(config(), kind)).eval()
    ids = torch.tensor([[0, 7, 8, 9], [0, 7, PAD, PAD]])
    batch = model.encode({"input_ids": ids, "attention_mask": ids != PAD})
    alone = model.encode({"input_ids": ids[1:, :2]})
    assert batch.positive.shape == batch.negative.shape == (2, vectors, 32)
    torch.testing.assert_close(batch.positive[1:], alone.positive, atol=1e-5, rtol=1e-5)
    assert (batch.positive[0] - batch.positive[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_an_export_keeps_its_kind(kind: str, tmp_path: Path) -> None:
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
    kinds: dict[str, type] = {"linear": LinearConditioner, "mlp": MLPConditioner}
    for kind, of in kinds.items():
        conditioner = make_conditioner(with_conditioner(config(), kind)).eval()
        assert isinstance(conditioner, of)
        moved[kind] = (
            ((conditioner(states) - conditioner(changed)).abs().amax(dim=(0, 2)) > 0).nonzero().flatten().tolist()
        )
    assert moved["linear"] == [2]
    assert len(moved["mlp"]) == 77


def test_a_stage_puts_another_conditioner_in_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    model = KosmosG(config())
    before = {name: value.clone() for name, value in model.mllm.state_dict().items()}
    replace_conditioner(model, "linear")
    assert isinstance(model.aligner, LinearConditioner)
    assert model.config.aligner_config.kind == "linear"
    assert all(torch.equal(value, before[name]) for name, value in model.mllm.state_dict().items())


def test_mistakes_name_the_remedy() -> None:
    projected = with_conditioner(config(), "linear")
    with pytest.raises(PromptError, match="309 tokens long, this conditioner takes at most 308"):
        make_conditioner(projected)(torch.zeros(1, 309, 64))
    with pytest.raises(ConfigError, match="'linear' already"):
        with_conditioner(projected, "mlp")
    unknown = config()
    unknown.aligner_config.kind = "magic"
    with pytest.raises(ConfigError, match="kind: there is no 'magic'; choose one of alignernet, linear, mlp"):
        make_conditioner(unknown)


class MeanConditioner(KosmosGPreTrainedModel):
    """A plug-in's: a few copies of the mean state."""

    base_model_prefix = "aligner"

    def __init__(self, config: KosmosGConfig) -> None:
        super().__init__(config)
        self.copies = config.aligner_config.copies
        self.projection = linear(config.text_config.embed_dim, config.aligner_config.d_model)
        self.post_init()

    @classmethod
    def configure(cls, aligner: KosmosGAlignerConfig) -> None:
        aligner.copies = 3

    def forward(self, states: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        kept = torch.ones(states.shape[:2]) if padding_mask is None else (~padding_mask).float()
        mean = (states * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        return self.projection(mean)[:, None].expand(-1, self.copies, -1)


def test_a_plug_ins_kind_is_one_like_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken in settings, put into a model, saved with its own settings and loaded again."""
    with pytest.raises(ValueError, match="choose one of alignernet, linear, mlp"):
        ModelConfig(aligner="mean")
    monkeypatch.setitem(CONDITIONERS, "mean", MeanConditioner)
    model = KosmosG(config())
    replace_conditioner(model, ModelConfig(aligner="mean").aligner)
    model.eval().save_pretrained(tmp_path)
    again = KosmosG.from_pretrained(tmp_path).eval()
    assert isinstance(again.aligner, MeanConditioner)
    assert again.config.aligner_config.copies == 3
    ids = {"input_ids": torch.tensor([[0, 7, 8]])}
    assert model.encode(ids).positive.shape == (1, 3, 32)
    torch.testing.assert_close(again.encode(ids).positive, model.encode(ids).positive)

    monkeypatch.delitem(CONDITIONERS, "mean")
    with pytest.raises(ConfigError, match="there is no 'mean'"):
        KosmosG.from_pretrained(tmp_path)
