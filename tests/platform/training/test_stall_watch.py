"""Which workers are taken to hang, by what they have told when."""

from pathlib import Path
from types import SimpleNamespace

from kosmosg_platform.training.heartbeat import Heartbeat
from kosmosg_platform.training.stall_watch import StallWatch, _Watched

PLACE = SimpleNamespace(metadata=SimpleNamespace(pid=7, node_ip="10.0.0.4"))


def watched(*lasts: str) -> StallWatch:
    """Workers that began at 0 and told this last; of `start` nobody has told anything yet."""
    watch = StallWatch(Path("run"), 5, 1000)
    watch._watched = {rank: _Watched(PLACE, 0.0, last=Heartbeat(doing, 0)) for rank, doing in enumerate(lasts)}
    return watch


def test_the_start_may_take_long() -> None:
    watch = watched("start", "start")
    assert watch._stalled(900.0) is None
    stalled = watch._stalled(1001.0)
    assert stalled is not None
    assert stalled[0] == [0, 1]


def test_who_never_answered_is_silent_once_another_is_past_the_start() -> None:
    """One is past its start only when all are, but the first answer of another may be on its way."""
    watch = watched("step", "start")
    for now in (300.0, 304.0):
        watch._watched[0].answered = now
        assert watch._stalled(now) is None
    watch._watched[0].answered = 306.0
    stalled = watch._stalled(306.0)
    assert stalled is not None
    assert stalled[0] == [1]
    assert "does not answer any more" in stalled[1]
