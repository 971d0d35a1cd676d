"""One HTML page that tells what a run did: tables, curves and pictures, all inside a single file.

The page is for a person who was not there: it opens without a server, can be sent by mail, and shows pictures before
figures. Everything that goes in is escaped by the template.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Table:
    """Column titles and rows of already formatted cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A picture with its caption. `pixelated` keeps the edges of enlarged pixel art sharp."""

    png: bytes
    caption: str
    pixelated: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    @classmethod
    def of(cls, image: Image.Image, caption: str, pixelated: bool = False) -> "Figure":
        """A figure from a PIL picture."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return cls(buffer.getvalue(), caption, pixelated)


@dataclass(frozen=True)
class Section:
    """A headed part of the page; its parts appear as text, figures, table."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Report:
    """The whole page. `facts` are the few figures a reader should see first, as label -> value."""

    title: str
    lead: str
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: Sequence[Section] = ()

    def write(self, path: Path) -> Path:
        """Write the page atomically, so that an interrupted run never leaves half of one."""
        import jinja2

        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        template = environment.from_string((Path(__file__).parent / "report.html.j2").read_text())
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(template.render(report=self))
        partial.replace(path)
        return path


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> bytes:
    """Line plots side by side, one panel a series, as PNG bytes.

    series: panel title -> (x, y) points; a panel without points says so instead of vanishing.
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
