"""One step over the rows of a chunk, with the answers of models kept between builds.

    DEST/.answers/<step>-<key>/<chunk's content>.arrow

The key stands for everything that an answer depends on: the source, the step's settings, and those of the steps that it
needs. So a build with another segmenter asks only the segmenter again, and one with another filter in front of a
captioner asks the captioner for the few rows that it has not seen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather

from kosmosg.data.annotators.apply import UNEXPECTED, apply
from kosmosg.data.annotators.base import FIELDS, Annotator, Rejection
from kosmosg.data.kept_answers import answers_table, read_answers
from kosmosg.data.pipeline_rows import PipelineRow
from kosmosg_platform.datasets.chunks import Chunk
from kosmosg_platform.datasets.spent import Costs, Spent, device_of, plain_costs, timed
from kosmosg_platform.datasets.steps import PipelineStep
from kosmosg_platform.storage import replaced
from kosmosg_platform.stores.node_copy import bring, send

ANSWERS = ".answers"


def place_of(folder: Path, step: PipelineStep) -> Path:
    """The folder of a step's answers."""
    return folder / ANSWERS / f"{step.name}-{step.key[:16]}"


class StepRunner:
    """A step where it runs: the annotator is built when it is first needed, so kept answers load no weights."""

    def __init__(self, folder: Path, step: PipelineStep) -> None:
        self.step = step
        self.place = place_of(folder, step)
        self._annotator: Annotator | None = None

    @property
    def annotator(self) -> Annotator:
        """The annotator or filter."""
        if self._annotator is None:
            self._annotator = self.step.make()
        return self._annotator

    def run(self, rows: Sequence[PipelineRow], chunk: Chunk) -> list[PipelineRow]:
        """Put the step's answers into the rows; rejected rows pass through."""
        samples = [row.sample for row in rows if row.sample is not None]
        known, name = self._kept(chunk)
        costs: Costs = {}
        unknown = [sample for sample in samples if sample.id not in known]
        if unknown:
            name = self.annotator.name  # loads the model, which does not count
            with timed(costs, self.step.name, len(unknown), device_of(self.annotator)) as spent:
                given = apply(self.annotator, unknown, self.step.batch_size)
                spent.reached = len(samples)
            known |= {sample.id: answer for sample, answer in zip(unknown, given, strict=True)}
            self._keep(chunk, known, name)
        done: list[PipelineRow] = []
        for row in rows:
            if row.sample is None:
                done.append(row)
                continue
            answer = known[row.sample.id]
            if isinstance(answer, Rejection):
                done.append(row.refused(self.step.name, *answer))
                continue
            if self.step.fills:
                row.sample.fill(self.step.fills, answer)
                row.names[FIELDS[self.step.fills].credit] = name
            done.append(row)
        if not unknown:
            costs[self.step.name] = Spent(len(samples))
        if done:
            done[0].costs.update(plain_costs(costs))
        return done

    def _kept(self, chunk: Chunk) -> tuple[dict[str, Any], str]:
        if not self.step.keep:
            return {}, ""
        try:
            file = self._file(chunk)
            if not file.is_file():
                bring(file)
            return read_answers(feather.read_table(file, memory_map=False))
        except (OSError, pa.ArrowInvalid, KeyError, TypeError):
            return {}, ""  # there is none, or it is damaged: the step is asked

    def _keep(self, chunk: Chunk, answers: dict[str, Any], name: str) -> None:
        if not self.step.keep:
            return
        # What failed through a fault of ours or of the machine gets another chance.
        worth = {
            key: answer
            for key, answer in answers.items()
            if not (isinstance(answer, Rejection) and answer.reason.startswith(UNEXPECTED))
        }
        with replaced(self._file(chunk)) as partial:
            feather.write_feather(answers_table(self.step.fills, worth, name), partial, compression="zstd")
        send(self._file(chunk))

    def _file(self, chunk: Chunk) -> Path:
        return self.place / f"{chunk.content}.arrow"
