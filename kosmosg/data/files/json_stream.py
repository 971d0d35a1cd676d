"""The elements of one large JSON array, one by one, so that the array is never in memory."""

import codecs
import json
from collections.abc import Iterator
from typing import Any

from kosmosg.errors import DataError

_BLOCK = 1 << 16
_ELEMENT = 1 << 20  # characters that one element may have
_SPACE = " \t\r\n"


def array_elements(file: Any, name: str) -> Iterator[Any]:
    """The elements of an array of objects, arrays or strings. Raises DataError where it is torn or no array."""
    decode = json.JSONDecoder().raw_decode
    text = codecs.getincrementaldecoder("utf-8-sig")()
    held, at, begun, ended = "", 0, False, False
    while True:
        at = _skipped(held, at, _SPACE if not begun else _SPACE + ",")
        if not begun and at < len(held):
            if held[at] != "[":
                raise DataError(f"{name} is no JSON array; it begins with {held[at : at + 40]!r}")
            begun, at = True, at + 1
            continue
        if begun and at < len(held):
            if held[at] == "]":
                return
            try:
                value, at = decode(held, at)
            except (ValueError, RecursionError) as error:
                if ended or len(held) - at > _ELEMENT:
                    raise DataError(f"{name} is damaged or torn: {' '.join(str(error).split())}") from error
            else:
                yield value
                continue
        if ended:
            raise DataError(f"{name} is torn: it ends within the array" if begun else f"{name} is empty")
        block = file.read(_BLOCK)
        ended = not block
        try:
            held, at = held[at:] + text.decode(block, ended), 0
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is not UTF-8 ({error.reason})") from error


def _skipped(held: str, at: int, characters: str) -> int:
    while at < len(held) and held[at] in characters:
        at += 1
    return at
