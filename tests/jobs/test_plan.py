"""`kosmosg plan`: every shipped preset can be planned, without its data, its weights or a GPU."""

import pytest

from jobs.experiment import PRESETS
from jobs.plan import plan
from kosmosg_platform.run_paths import STAGES

SHIPPED = sorted(path.stem for path in PRESETS.glob("*.yaml"))


@pytest.mark.parametrize("preset", SHIPPED)
def test_every_shipped_preset_is_planned(preset: str) -> None:
    assert [one.cost.stage for one in plan([preset])] == list(STAGES)
