"""Text for stage 1: how documents become rows of tokens.

The layout of a row is that of the public Kosmos text reader: it opens with `<s>` and is then filled with whole lines;
every line ends with `</line>`, the last one of a document with `</s>`. Documents follow each other without a reset of
positions or attention.

The packing rule: one text sample is one row. Sample k of a text source is the group of documents [k n, (k + 1) n), with
n = `templates.pretrain.documents_per_row`, in the order of the dataset, so every document occurs once per epoch. If a
group does not fit, reading starts at a line chosen by the sample's seed, so later epochs read other parts of it. A row
is therefore a pure function of the sample's index and seed, independent of workers, micro-batches and data loaders; a
batch has as many rows as samples, however long its documents are; and resuming remains arithmetic on the sample order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from kosmosg.errors import ConfigError

CHARACTERS_PER_TOKEN = 8
"""A line of more than this many characters per token of a row is broken at a space, so that all of it can be read."""

Line = tuple[str, list[int]]  # text, and the token that closes it, if any


class Documents(Protocol):
    """A dataset of records with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class DocumentGroups:
    """A dataset seen as groups of `size` neighbouring records; the last group may be smaller."""

    def __init__(self, records: Documents, size: int) -> None:
        self._records = records
        self._size = size

    def __len__(self) -> int:
        return -(-len(self._records) // self._size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`{"documents": [record, ...]}`."""
        return {"documents": [self._records[place] for place in self.members(index)]}

    def members(self, index: int) -> range:
        """The records of a group, by their index."""
        start = index * self._size
        return range(start, min(start + self._size, len(self._records)))


def document_lines(text: str, longest: int, line_end: int, eos: int) -> list[Line]:
    """The lines of one document, each with its closing token.

    Empty lines are dropped; a document without any line is just `</s>`, as in the original. A line of more than
    `longest` characters is broken at spaces; only its last part has a closing token.
    """
    lines: list[Line] = []
    for line in text.split("\n"):
        while len(line) > longest:
            cut = line.rfind(" ", 1, longest) if " " in line[1:longest] else longest
            lines.append((line[:cut], []))
            line = line[cut:]
        if line:
            lines.append((line, [line_end]))
    if not lines:
        return [("", [eos])]
    lines[-1] = (lines[-1][0], [eos])
    return lines


def text_row(
    documents: Sequence[str],
    length: int,
    tokenize: Callable[[str], list[int]],
    bos: int,
    line_end: int,
    eos: int,
    draw: Callable[[], float],
) -> list[int]:
    """The row of a group of documents: at most `length` tokens, `<s>` followed by whole lines.

    If the documents do not fit, one number of `draw` chooses the first line, at the latest the one from which the rest
    fits. A single line that could never fit is truncated to `length - 1` tokens and loses its closing token, as in the
    original. At most about three rows of text are tokenised, however much there is.

    Raises:
        ConfigError: `length` is less than two, which leaves no room for text.
    """
    if length < 2:
        raise ConfigError(f"rows of {length} tokens leave no room for text; set a length of at least 2")
    longest = length * CHARACTERS_PER_TOKEN
    lines = [line for text in documents for line in document_lines(text, longest, line_end, eos)]

    def fill(chosen: Iterable[Line]) -> tuple[list[list[int]], bool]:
        """As many of the lines as fit, in their order, and whether that was all of them."""
        taken: list[list[int]] = []
        room = length - 1
        for text, close in chosen:
            tokens = [*tokenize(text), *close][: length - 1]
            if len(tokens) > room:
                return taken, False
            taken.append(tokens)
            room -= len(tokens)
        return taken, True

    taken, all_fit = fill(lines)
    if not all_fit:
        from_the_end, _ = fill(reversed(lines))
        latest = len(lines) - len(from_the_end)
        taken, _ = fill(islice(lines, int(draw() * (latest + 1)), None))
    return [bos, *(token for tokens in taken for token in tokens)]
