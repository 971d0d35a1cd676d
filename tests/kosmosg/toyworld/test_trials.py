"""Figures of several seeds: what they mean, how wide their intervals are, and edits that are judged."""

import numpy as np
import pytest
from PIL import Image

from kosmosg.errors import DataError
from kosmosg.eval.statistics import measure_shares
from kosmosg.toyworld.benchmark import Correctness
from kosmosg.toyworld.edits import ASKED, edit_prompts, judge_edits
from kosmosg.toyworld.scene import KINDS, render
from kosmosg.toyworld.trials import measure_trials


def marks(right: np.ndarray, error: float = 5.0) -> Correctness:
    """Two entities a prompt, both as right as the prompt is."""
    both = np.repeat(right, 2)
    picture = np.repeat(np.arange(len(right)), 2)
    return Correctness(picture, both, both, np.full(len(both), error), right)


def test_a_mean_is_over_seeds_and_its_interval_over_prompts() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(400) < 0.9, rng.random(400) < 0.7
    found = measure_trials([marks(first), marks(second, error=9.0)])
    assert found["shape"].seeds == (first.mean(), second.mean())
    assert found["shape"].mean == pytest.approx((first.mean() + second.mean()) / 2)
    assert found["hue"].mean == 7.0
    width = found["shape"].high - found["shape"].low
    # Both entities of a prompt are right together, so only prompts count: twice 1.96 standard errors of their mean.
    expected = 2 * 1.96 * np.std((first.astype(float) + second) / 2) / np.sqrt(400)
    assert width == pytest.approx(expected, rel=0.15)
    assert found["shape"].low < found["shape"].mean < found["shape"].high


def test_a_result_that_never_varies_has_no_interval() -> None:
    found = measure_trials([marks(np.ones(10, dtype=bool))] * 3)
    assert found["image"].show() == "1.00 [1.00, 1.00]"


def test_trainings_that_were_asked_different_prompts_are_not_averaged() -> None:
    with pytest.raises(DataError, match="different prompts"):
        measure_trials([marks(np.ones(4, dtype=bool)), marks(np.ones(5, dtype=bool))])


def test_shares_are_means_over_seeds_too() -> None:
    found = measure_shares([{"changed": np.array([1.0, 0.0, 1.0, 1.0])}, {"changed": np.ones(4)}])["changed"]
    assert (found.mean, found.seeds) == (0.875, (0.75, 1.0))
    assert found.low < found.mean <= found.high


def test_edits_ask_for_everything_in_turn_about_subjects_never_seen() -> None:
    prompts = edit_prompts(20, seed=3)
    assert [prompt.asked for prompt in prompts[:5]] == list(ASKED)
    assert all(prompt.edit.before.entities[0].held_out for prompt in prompts)
    assert all(prompt.prompt.text.startswith("<i>") and len(prompt.prompt.images) == 1 for prompt in prompts)
    assert [p.edit for p in prompts] == [p.edit for p in edit_prompts(20, seed=3)]


def test_perfect_answers_are_right_and_doing_nothing_is_not() -> None:
    prompts = edit_prompts(100, seed=0)
    perfect = judge_edits([Image.fromarray(render([prompt.edit.after])[0]) for prompt in prompts], prompts)
    for part in ("changed", "shape", "identity", "background", "done"):
        assert getattr(perfect, part).mean() >= 0.97, part
    lazy = judge_edits([Image.fromarray(render([prompt.edit.before])[0]) for prompt in prompts], prompts)
    assert lazy.changed.mean() <= 0.05
    assert lazy.done.mean() <= 0.05
    assert lazy.identity.mean() >= 0.97, "what was not to change has not"
    assert lazy.shape.mean() == pytest.approx(1 - 1 / len(ASKED), abs=0.03), f"one of {KINDS} was asked for"
    assert lazy.background.mean() == pytest.approx(1 - 2 / len(ASKED), abs=0.03)
