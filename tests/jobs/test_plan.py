"""`kosmosg plan`: every shipped preset can be planned, without its data, its weights or a GPU."""

import pytest

from jobs.experiment import PRESETS
from jobs.plan import main, plan
from kosmosg_platform.run_paths import STAGES

SHIPPED = sorted(path.stem for path in PRESETS.glob("*.yaml"))


@pytest.mark.parametrize("preset", SHIPPED)
def test_every_shipped_preset_is_planned(preset: str) -> None:
    assert [one.cost.stage for one in plan([preset])] == list(STAGES)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.lr=1e9", "train.lr: pretrain would learn at 1e+09"),
        ("data.max_seq_len=100000", "data.max_seq_len: 100,000 tokens"),
        ("parent=nowhere/at_all", "parent: "),
        ("train.global_batch=7", "train.global_batch: 7 samples cannot be shared equally by 2 workers"),
        ("engine.precision=fp16", "engine.precision: fp16 needs a GPU"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(word: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tiny", "scale.workers=2", word])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"kosmosg plan: {sentence}")
    assert len(printed.err.splitlines()) == 1


def test_a_price_gives_the_cost_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    (first, *_) = plan(["paper"])
    with pytest.raises(SystemExit):
        main(["paper", "plan.dollars_per_gpu_hour=2"])
    days = first.rows[0].days
    assert days is not None
    page = capsys.readouterr().out
    assert f"{days * 24 * 256 * 2:,.2f} dollars" in page
    assert "network: at least" in page
    assert f"checkpoints: {first.checkpoints:,} of" in page
