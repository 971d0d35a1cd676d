"""The report page is whole, safe and self-contained."""

import re
from pathlib import Path

import pytest
from PIL import Image

from kosmosg_platform.reports.page import Figure, PageSection, Report, Table, curves


def test_page_is_one_file_and_shows_everything(tmp_path: Path) -> None:
    figure = Figure.of(Image.new("RGB", (4, 4), "red"), "a red square")
    section = PageSection("Scores", "First.\n\nSecond.", [figure], Table(["name", "value"], [["hue", "11"]]))
    page = Report("Title", "Lead", {"time": "3 min"}, [section]).write(tmp_path / "sub" / "report.html").read_text()
    for text in ("Title", "Lead", "3 min", "Scores", "First.", "Second.", "a red square", "hue", "11"):
        assert text in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page must not point outside itself"
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["report.html"]


def test_markup_in_values_is_text(tmp_path: Path) -> None:
    prompt = "<i> and <script>alert(1)</script>"
    page = Report(prompt, prompt, {}, [PageSection(prompt, prompt, table=Table([prompt], [[prompt]]))])
    assert "<script>" not in page.write(tmp_path / "report.html").read_text()


@pytest.mark.parametrize("points", [[], [(0.0, 2.0), (1.0, 1.0)]])
def test_curves_are_a_picture_even_without_points(points: list[tuple[float, float]]) -> None:
    assert curves({"loss": points}, "step", "loss").startswith(b"\x89PNG")
