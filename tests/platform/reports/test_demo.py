"""The pipeline end to end as a user runs it: dataset, three stages, export, evaluation, one HTTP request, a page."""

import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kosmosg import KosmosGConfig
from kosmosg.checkpoint.digest import model_digest
from kosmosg.checkpoint.export import load_export
from kosmosg.conditioners.base import CONDITIONERS, with_conditioner
from kosmosg_platform.run_paths import choose_model

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 540


def demo(output: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "kosmosg"), "run", "demo", "tiny", f"output={output}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)


def kosmosg_experiment(client: Any) -> str:
    return str(client.get_experiment_by_name("kosmosg").experiment_id)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    result = demo(folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.mark.parametrize("kind", sorted(CONDITIONERS))
def test_the_page_says_when_the_model_is_not_the_papers(tmp_path: Path, kind: str) -> None:
    from kosmosg_platform.reports.demo import _conditioner

    with_conditioner(KosmosGConfig.tiny(), kind).save_pretrained(tmp_path)
    told = _conditioner(tmp_path)
    assert (told == "") == (kind == "alignernet")
    assert kind == "alignernet" or f"a simpler conditioner ({kind})" in told


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
class TestDemo:
    def test_dataset_holds_what_was_asked_for(self, output: Path) -> None:
        manifest = json.loads((output / "demo/build_dataset/composition/manifest.json").read_text())
        assert manifest["rows"] == 64

    @pytest.mark.parametrize("stage", ["pretrain", "align", "instruct"])
    def test_every_stage_exports_a_model_that_loads(self, output: Path, stage: str) -> None:
        folder = output / "demo" / stage / "export"
        model, _ = load_export(folder)
        assert sum(parameter.numel() for parameter in model.parameters()) > 0
        assert {"README.md", "experiment.yaml", "config.json"} <= {path.name for path in folder.iterdir()}

    def test_stages_are_linked_runs_in_mlflow(self, output: Path) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
        runs = {run.data.tags["stage"]: run for run in client.search_runs([kosmosg_experiment(client)])}
        assert set(runs) == {"demo", "pretrain", "align", "instruct", "evaluate"}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        parent = runs.pop("demo")
        assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
        assert parent.data.params["instruct.steps"] == "6"
        assert parent.data.metrics["instruct/loss"] == runs["instruct"].data.metrics["loss"]
        for stage in ("pretrain", "align", "instruct"):
            assert {one.dataset.digest for one in runs[stage].inputs.dataset_inputs}
        for name in ("kosmosg-pretrain", "kosmosg-align", "kosmosg"):
            assert client.get_model_version_by_alias(name, "candidate").version

    def test_the_champion_is_loaded_by_its_name(self, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """By MLflow, from its signature; and by everything that takes the name of a model."""
        import mlflow
        import pandas

        name = "models:/kosmosg@champion"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output / 'mlflow.db'}")
        mlflow.set_tracking_uri(f"sqlite:///{output / 'mlflow.db'}")
        loaded = mlflow.pyfunc.load_model(name)
        assert loaded.metadata.signature.inputs.input_names() == ["prompt", "images"]
        with Image.open(output / "demo/sheet.png") as sheet, io.BytesIO() as file:
            sheet.crop((0, 0, 32, 32)).save(file, "PNG")
            shown = base64.b64encode(file.getvalue()).decode()
        table = pandas.DataFrame([{"prompt": "<i> at sea", "images": [shown]}])
        answer = loaded.predict(table, params={"steps": 2, "seed": 3})
        with Image.open(io.BytesIO(base64.b64decode(answer["image"][0]))) as image:
            assert image.size == (32, 32)
        folder = choose_model(output, "toyworld", name).folder
        assert model_digest(folder) == model_digest(output / "demo/instruct/export")

    def test_scores_tell_every_set_and_variant(self, output: Path) -> None:
        scores = json.loads((output / "demo/evaluate/scores.json").read_text())
        found = {(row["variant"], row["set"]) for row in scores}
        variants = ("shipped model", "before instruct", "after instruct", "text only")
        assert found == {(variant, entities) for variant in variants for entities in ("one", "two", "three")}
        assert all(0 <= row["hue"] <= 180 for row in scores)

    def test_page_and_sheets_are_there(self, output: Path) -> None:
        page = (output / "demo/report.html").read_text()
        assert "Subjects it has never seen" in page
        for told in ("pattern right", "whole subject right", "This is a short run", "shipped model", "in nats"):
            assert told in page
        assert page.count("data:image/png;base64,") >= 3
        for name in ("sheet.png", "endpoint/sheet.png"):
            with Image.open(output / "demo" / name) as sheet:
                assert sheet.width > 300

    def test_started_again_it_does_nothing_twice(self, output: Path) -> None:
        result = demo(output)
        assert result.returncode == 0, result.stderr[-4000:]
        assert result.stderr.count("was done before") == 6


def test_a_demo_that_fails_is_recorded_as_failed_with_its_reason(tmp_path: Path) -> None:
    """KILLED is for runs that their user stopped."""
    from mlflow import MlflowClient

    command = [str(Path(sys.executable).parent / "kosmosg"), "run", "demo", "tiny", f"output={tmp_path}"]
    command.append("demo.settings=['build.steps=[{use: sidecar}]']")  # its first job refuses
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert result.returncode != 0
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([kosmosg_experiment(client)])
    assert run.info.status == "FAILED"
    assert "sidecar cannot annotate this source" in run.data.tags["failure"]
