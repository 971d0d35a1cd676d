"""A report page: tables, curves, histograms, images and records.

As HTML it is a single self-contained file that opens without a server and without JavaScript; the template escapes all
contents, and the page allows itself nothing from outside. As Markdown it is a file next to a folder of images, for
documentation under version control.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from kosmosg_platform.storage import write_text


@dataclass(frozen=True)
class Bar:
    """A cell with a bar behind its text."""

    text: str
    share: float
    """Length of the bar, as a part of the longest that there can be."""

    @property
    def percent(self) -> str:
        """The length, for CSS."""
        return f"{100 * min(max(self.share, 0.0), 1.0):.2f}%"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """Column titles and rows of already formatted cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]


@dataclass(frozen=True)
class Histogram:
    """Bars beside each other, each with what it stands for."""

    title: str
    bars: Sequence[tuple[str, int]]
    """Label and count."""
    low: str
    """What stands below the first bar."""
    high: str
    """What stands below the last bar."""
    note: str = ""

    @property
    def rectangles(self) -> list[tuple[float, float, float, str]]:
        """Left, top and height of every bar on a ground of 100 x 100, and its text; 1 is the least that is seen."""
        most = max((count for _, count in self.bars), default=0) or 1
        found = []
        for number, (label, count) in enumerate(self.bars):
            height = round(max(100 * count / most, 1.0), 3) if count else 0.0
            found.append(
                (round(100 * number / len(self.bars), 3), round(100 - height, 3), height, f"{label}: {count:,}")
            )
        return found

    @property
    def bar_width(self) -> float:
        """Of one bar, on that ground."""
        return round(88 / max(len(self.bars), 1), 3)


@dataclass(frozen=True)
class Figure:
    """An image with its caption. `pixelated` keeps the edges of enlarged pixel art sharp."""

    data: bytes
    caption: str
    pixelated: bool = False
    form: str = "png"
    """What `data` is, png or jpeg."""
    colour: str = ""
    """CSS colour of a line around it; "" draws none."""

    @property
    def uri(self) -> str:
        """The image as a data URL."""
        return f"data:image/{self.form};base64," + base64.b64encode(self.data).decode()

    @classmethod
    def of(cls, image: Image.Image, caption: str, pixelated: bool = False) -> "Figure":
        """A figure from a PIL image."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return cls(buffer.getvalue(), caption, pixelated)

    @classmethod
    def thumbnail(cls, image: Image.Image, caption: str, colour: str = "") -> "Figure":
        """A figure for a page with hundreds of images: JPEG."""
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, format="JPEG", quality=85, subsampling=0)
        return cls(buffer.getvalue(), caption, form="jpeg", colour=colour)


@dataclass(frozen=True)
class Card:
    """One record: its id, its text in pieces, its images."""

    title: str
    text: Sequence[tuple[str, str]] = ()
    """Pieces of text, each with a CSS colour to mark it in; "" leaves it unmarked."""
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PageSection:
    """A section of the page with a heading; its contents appear in the order text, figures, histograms, table, cards.

    Markdown has the text, the figures and the table.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    table: Table | None = None
    histograms: Sequence[Histogram] = ()
    cards: Sequence[Card] = ()


@dataclass(frozen=True)
class Report:
    """The whole page. `facts` are the few figures a reader should see first, as label -> value."""

    title: str
    lead: str
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[PageSection] = ()

    def write(self, path: Path) -> Path:
        """Write the page atomically, so that an interrupted run never leaves half of one."""
        import jinja2

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        template = environment.from_string((Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8"))
        write_text(path, template.render(report=self))
        return path

    def write_markdown(self, path: Path) -> Path:
        """Write the page as Markdown, and its images to a folder beside it with the page's name."""
        pictures = path.with_suffix("")
        lines = [f"# {self.title}", self.lead]
        if self.facts:
            lines.append("\n".join(f"- {label}: **{value}**" for label, value in self.facts.items()))
        for section in self.sections:
            lines += [f"## {section.title}", *([section.text] if section.text else [])]
            for number, figure in enumerate(section.figures, 1):
                name = "-".join(re.findall(r"[a-z0-9]+", section.title.lower()))
                file = pictures / f"{name}{'' if len(section.figures) == 1 else f'-{number}'}.{figure.form}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(figure.data)
                lines.append(f"![{figure.caption}]({pictures.name}/{file.name})\n\n*{figure.caption}*")
            if section.table:
                rows = [section.table.columns, ["---"] * len(section.table.columns), *section.table.rows]
                cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
                lines.append("\n".join(f"| {' | '.join(row)} |" for row in cells))
        write_text(path, "\n\n".join(lines) + "\n")
        return path


def overlaid(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> bytes:
    """A line plot with one line per series, name -> (x, y) points, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(9.0, 4.6), layout="constrained")
    axis: Any = plot.subplots()
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(alpha=0.3)
    for name, points in series.items():
        axis.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1.3)
    axis.legend(fontsize=8, loc="upper right")
    FigureCanvasAgg(plot)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> bytes:
    """Line plots side by side, one panel per series, as PNG bytes.

    series: panel title -> (x, y) points; a panel without points says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(4.2 * max(1, len(series)), 2.9), layout="constrained")
    axes: Any = plot.subplots(1, max(1, len(series)), squeeze=False)[0]
    for axis, (title, points) in zip(axes, series.items(), strict=False):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(x_label, fontsize=9)
        axis.set_ylabel(y_label, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        if points:
            axis.plot([x for x, _ in points], [y for _, y in points], color="#2457c5", linewidth=1.4)
        else:
            axis.text(0.5, 0.5, "no points recorded", ha="center", va="center", transform=axis.transAxes)
    FigureCanvasAgg(plot)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
