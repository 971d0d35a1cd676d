"""Text for stage 1: documents become lines of tokens, lines become full packs of one length.

The layout is that of the public Kosmos text reader: a pack opens with `<s>` and is then filled with whole lines; every
line ends with `</line>`, the last one of a document with `</s>`. Documents follow each other without a reset of
positions or attention, and what does not fit continues in the next pack.
"""

from collections.abc import Callable, Iterable, Iterator

from kosmosg.errors import ConfigError


def document_lines(text: str, tokenize: Callable[[str], list[int]], line_end: int, eos: int) -> list[list[int]]:
    """The lines of one document as token ids, each with its closing token.

    Empty lines vanish; a document without any line is `</s>` alone, as in the original.
    """
    lines = [[*tokenize(line), line_end] for line in text.split("\n") if line]
    if not lines:
        return [[eos]]
    lines[-1][-1] = eos
    return lines


def pack_lines(lines: Iterable[list[int]], length: int, bos: int) -> Iterator[list[int]]:
    """Fills packs of at most `length` tokens with whole lines, in order.

    A line that could never fit behind `<s>` is cut to `length - 1` tokens, losing its closing token, as in the
    original. The last, partly filled pack is given out too.

    Raises:
        ConfigError: a length under two, which leaves no room for text.
    """
    if length < 2:
        raise ConfigError(f"packs of {length} tokens leave no room for text; set a length of at least 2")
    pack = [bos]
    for line in lines:
        line = line[: length - 1]
        if len(pack) + len(line) > length:
            yield pack
            pack = [bos]
        pack.extend(line)
    if len(pack) > 1:
        yield pack
