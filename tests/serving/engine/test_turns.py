"""Who gets the next U-Net call: sizes take turns, and within a size the oldest requests go first."""

import itertools
import random

import numpy as np
import pytest

from serving.engine.messages import ImageRequest
from serving.engine.step_engine import ActiveRequest, StepEngine

SIDES = (1, 2, 3)


def request(side: int, steps: int = 50) -> ImageRequest:
    nothing = np.zeros((2, 4), np.float32)
    return ImageRequest(nothing, nothing, (0,), height=side, width=side, steps=steps, guidance=1.0)


def served(engine: StepEngine) -> set[ActiveRequest]:
    """The requests that one tick brings forward."""
    return {active for active, _ in engine.tick()}


@pytest.mark.parametrize("counts", [(1, 1), (5, 1), (1, 7), (3, 3, 3), (9, 1, 2)])
def test_every_size_gets_its_share_of_calls(instant_engine: StepEngine, counts: tuple[int, ...]) -> None:
    """However many requests each size has, after any number of ticks the calls of two sizes differ by one at most."""
    requests = [request(side) for side, count in zip(SIDES, counts, strict=False) for _ in range(count)]
    random.Random(0).shuffle(requests)
    for asked in requests:
        instant_engine.admit(asked)
    calls = dict.fromkeys(SIDES[: len(counts)], 0)
    for _ in range(20):
        (side,) = {active.request.height for active in served(instant_engine)}
        calls[side] += 1
        assert max(calls.values()) - min(calls.values()) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_no_size_waits_longer_than_a_turn_of_each_other(instant_engine: StepEngine, seed: int) -> None:
    """Requests come and leave at random: a size with requests under way is served within one turn of each other."""
    rng = random.Random(seed)
    under_way: list[ActiveRequest] = []
    waited = dict.fromkeys(SIDES, 0)
    for _ in range(150):
        under_way = [active for active in under_way if not active.left]
        if len(under_way) < 12 and rng.random() < 0.6:
            under_way.append(instant_engine.admit(request(rng.choice(SIDES), steps=rng.randrange(1, 9))))
        if under_way and rng.random() < 0.1:
            instant_engine.leave(rng.choice(under_way))
        present = {active.request.height for active in under_way if not active.left}
        turn = {active.request.height for active in served(instant_engine)}
        for side in SIDES:
            waited[side] = waited[side] + 1 if side in present - turn else 0
            assert waited[side] < len(SIDES), f"{side} waits for its turn too long"


def test_a_full_engine_admits_another_size_at_once(instant_engine: StepEngine) -> None:
    """More requests of one size than fit into a call; one of another size does not wait for any of them to finish."""
    for _ in range(3 * instant_engine.max_batch_rows):
        instant_engine.admit(request(side=1))
    served(instant_engine)
    late = instant_engine.admit(request(side=2, steps=5))
    ticks = next(i for i in itertools.count(1) if instant_engine.tick() and late.left)
    assert ticks <= 2 * 5


@pytest.mark.parametrize("side", SIDES)
def test_within_a_size_the_oldest_go_first_and_fill_the_call(instant_engine: StepEngine, side: int) -> None:
    admitted = [instant_engine.admit(request(side, steps=4)) for _ in range(10)]
    fit = max(1, instant_engine.max_batch_rows // side**2)
    finished: list[ActiveRequest] = []
    while instant_engine.active:
        turn = served(instant_engine)
        assert turn == set([a for a in admitted if a not in finished][:fit])
        finished += [active for active in admitted if active.left and active not in finished]
    assert finished == admitted
