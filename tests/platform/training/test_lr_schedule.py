"""The learning rate as a function of the step, and how a batch is shared."""

import pytest
from torch import nn

from kosmosg.errors import ConfigError
from kosmosg_platform.training.lr_schedule import TrainConfig, batch_plan, freeze, learning_rate, lr_multiplier


def rates(**settings: object) -> list[float]:
    train = TrainConfig(lr=1.0, **settings)  # type: ignore[arg-type]
    return [learning_rate(train, step) for step in range(train.steps)]


def test_warm_up_reaches_the_peak_and_linear_decay_would_end_at_zero() -> None:
    values = rates(steps=10, warmup=4, schedule="linear")
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    # fairseq's polynomial decay of power 1: a straight line from the end of the warm-up to 0 at `steps`
    assert values[4:] == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_decay_over_the_last_fraction_leaves_a_plateau() -> None:
    values = rates(steps=100, warmup=10, schedule="linear", decay_fraction=0.3)
    assert values[10:71] == [1.0] * 61
    assert values[85] == pytest.approx(0.5)


def test_cosine_is_half_way_in_the_middle() -> None:
    values = rates(steps=100, schedule="cosine")
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.5)
    assert values == sorted(values, reverse=True)


def test_constant_stays() -> None:
    assert rates(steps=5, warmup=2, schedule="constant") == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "plan"),
    [(48, None, 2, (24, 1)), (48, 6, 2, (6, 4)), (3584, None, 256, (14, 1)), (6656, 13, 256, (13, 2))],
)
def test_workers_times_micro_times_passes_is_the_batch(
    batch: int, micro: int | None, workers: int, plan: tuple[int, int]
) -> None:
    assert batch_plan(TrainConfig(global_batch=batch, micro_batch=micro), workers) == plan
    assert workers * plan[0] * plan[1] == batch


def test_what_does_not_divide_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"train.global_batch: 10 samples cannot be shared equally by 4 workers"):
        batch_plan(TrainConfig(global_batch=10), 4)
    with pytest.raises(ConfigError, match=r"train.micro_batch: 5 does not divide the 12 samples of each worker"):
        batch_plan(TrainConfig(global_batch=24, micro_batch=5), 2)
    with pytest.raises(ConfigError, match=r"train.micro_batch: 16 does not divide"):
        batch_plan(TrainConfig(global_batch=8, micro_batch=16), 1)


def test_the_longest_name_decides_the_multiplier() -> None:
    train = TrainConfig(lr_multipliers={"model": 0.5, "model.mllm": 0.1, "model.mllm.vision_model": 0})
    found = {name: lr_multiplier(train, name) for name in ("model.aligner.w", "model.mllm.w", "model.mllms.w", "other")}
    assert found == {"model.aligner.w": 0.5, "model.mllm.w": 0.1, "model.mllms.w": 0.5, "other": 1.0}


def test_a_multiplier_of_zero_freezes() -> None:
    stage = nn.ModuleDict({"eye": nn.Linear(2, 2), "mouth": nn.Linear(2, 2)})
    freeze(TrainConfig(lr_multipliers={"eye": 0, "mouth": 0.5}), stage.named_parameters())
    assert [name for name, parameter in stage.named_parameters() if parameter.requires_grad] == [
        "mouth.weight",
        "mouth.bias",
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ear": 0.1}, "nothing that is trained begins with 'ear'; there are eye.bias, eye.weight"),
        ({"eye": 0}, "nothing would be trained"),
    ],
)
def test_multipliers_that_mean_nothing_are_refused(given: dict[str, float], told: str) -> None:
    stage = nn.ModuleDict({"eye": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=told):
        freeze(TrainConfig(lr_multipliers=given), stage.named_parameters())


def test_a_multiplier_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="the multiplier of 'model' is -1"):
        TrainConfig(lr_multipliers={"model": -1})
