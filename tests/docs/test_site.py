"""The documentation builds as a site without network, and the notebook runs on a CPU."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]


def test_the_site_builds_and_its_links_hold(tmp_path: Path) -> None:
    """mkdocs is strict: a broken link, a page outside the navigation or an unknown name of the API is an error."""
    command = [str(Path(sys.executable).parent / "mkdocs"), "build", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "index.html").is_file()
    assert "KosmosGPipeline" in (tmp_path / "reference/kosmosg.html").read_text()


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    notebook = nbformat.read(ROOT / "docs/notebooks/in_context_generation.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 6, "references, four seeds, order, edits, stock pipeline, between two prompts"
