"""The contact sheet shows every row, whole and sharp."""

import numpy as np
import pytest
from PIL import Image

from kosmosg import Prompt
from kosmosg.eval.result_sheet import SheetRow, result_sheet


def plain(color: tuple[int, int, int], size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def test_every_picture_of_every_row_is_on_the_sheet_unblurred() -> None:
    references = [plain((200, 10, 10)), plain((10, 200, 10))]
    rows = [SheetRow(Prompt("<i> and <i> at sea", images=references), [plain((10, 10, 200 - i))]) for i in range(3)]
    pixels = np.asarray(result_sheet(rows, ["result"], tile=32)).reshape(-1, 3)
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    found = {tuple(color): count for color, count in zip(colors.tolist(), counts.tolist(), strict=True)}
    assert found[(200, 10, 10)] == found[(10, 200, 10)] == 3 * 32 * 32
    assert all(found[(10, 10, 200 - i)] == 32 * 32 for i in range(3))


def test_a_row_with_a_missing_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="every row needs 2 images"):
        result_sheet([SheetRow(Prompt("a ball"), [plain((1, 2, 3))])], ["before", "after"])
