"""Steps of the sample order that a run leaves out, because training broke down on them and was rolled back.

    RUN/skipped_data.json     windows of the sample order, each with the step that failed and the reason

In a run without such a file, step s consumes step s of the sample order. After a rollback from the failed step f to
the checkpoint at step c, everything that the steps c to f consumed is left out: step c now consumes what step f + 1
would have. The windows are kept beside the checkpoints, so an interrupted run leaves out the same data when it resumes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from kosmosg.errors import DataError
from kosmosg_platform.storage import read_json, write_json

FILE = "skipped_data.json"


@dataclass(frozen=True)
class DataWindow:
    """What one rollback leaves out: the steps [first, stop) of the sample order."""

    first: int
    stop: int
    checkpoint_step: int
    """The step that the run was rolled back to."""
    failed_step: int
    """The step that failed, 0-based, as in metrics.jsonl."""
    reason: str


@dataclass(frozen=True)
class SkippedData:
    """The windows of one run, oldest first."""

    windows: Sequence[DataWindow] = ()

    @classmethod
    def read(cls, run: Path) -> Self:
        """Those of a run's folder. Raises DataError if its file is damaged."""
        path = run / FILE
        if not path.is_file():
            return cls()
        try:
            return cls(tuple(DataWindow(**window) for window in read_json(path)["windows"]))
        except (TypeError, KeyError) as error:
            raise DataError(f"{path} does not list windows of the sample order: {error}") from None

    def write(self, run: Path) -> None:
        """Write the file, atomically."""
        write_json(run / FILE, {"windows": [asdict(window) for window in self.windows]})

    def data_step(self, step: int) -> int:
        """The step of the sample order that the run's step `step` consumes."""
        stop = 0
        for window in sorted(self.windows, key=lambda one: one.first):
            first = max(window.first, stop)  # windows of rollbacks to ever older checkpoints overlap
            if step < first:
                break
            step += max(window.stop - first, 0)
            stop = max(window.stop, stop)
        return step

    def rollbacks_to(self, checkpoint_step: int) -> int:
        """How often the run was rolled back to the checkpoint at that step."""
        return sum(window.checkpoint_step == checkpoint_step for window in self.windows)

    def after(self, checkpoint_step: int, failed_step: int, reason: str) -> "SkippedData":
        """With one more rollback, which leaves out all that was consumed since the checkpoint."""
        first, last = self.data_step(checkpoint_step), self.data_step(failed_step)
        return SkippedData((*self.windows, DataWindow(first, last + 1, checkpoint_step, failed_step, reason)))
