"""A tracking server over PostgreSQL, as clusters have it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.tracking import Run, TrackingConfig
from tests.mlflow_server import MlflowServer

SECONDS = 60


def programs() -> Path | None:
    """The folder of PostgreSQL's server programs, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return places[-1] if places else None


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an empty database of a server of its own."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
    if find_spec("psycopg2") is None:
        pytest.skip("PostgreSQL's client is not installed (pip install psycopg2-binary)")
    place = tmp_path_factory.mktemp("postgres")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        for path in (place, *list(place.parents)[:2]):
            path.chmod(0o755)
        shutil.chown(place, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = place / "data"
    subprocess.run(
        [folder / "initdb", "-D", data, "-U", "mlflow", "-A", "trust"], user=user, check=True, capture_output=True
    )
    command = [folder / "postgres", "-D", data, "-p", str(port), "-k", place, "-h", "127.0.0.1"]
    server = subprocess.Popen(command, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    uri = f"//mlflow@127.0.0.1:{port}/postgres"
    try:
        wait_until_ready(f"postgresql:{uri}")
        yield f"postgresql+psycopg2:{uri}"
    finally:
        server.terminate()
        server.wait(SECONDS)


def wait_until_ready(uri: str) -> None:
    import psycopg2

    until = time.monotonic() + SECONDS
    while True:
        try:
            psycopg2.connect(uri).close()
            return
        except psycopg2.OperationalError:
            assert time.monotonic() < until, "PostgreSQL did not start"
            time.sleep(0.2)


@pytest.mark.slow
def test_a_run_is_complete_in_a_server_over_postgresql(postgres: str, tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "server", postgres)
    server.start()
    try:
        tracking = TrackingConfig(uri=server.uri, flush_seconds=60)
        run = Run.open(tracking, RunPaths(tmp_path), "align", tmp_path / "align", "key", params={"train": {"lr": 0.1}})
        for step in range(300):
            run.log_metrics({"loss": 1 / (step + 1)}, step)
        export = tmp_path / "export"
        export.mkdir()
        (export / "config.json").write_text("{}")
        for _ in range(2):
            run.log_model("kosmosg", export, "one export")
        run.close()
        client = MlflowClient(server.uri)
        assert [point.step for point in client.get_metric_history(run.id, "loss")] == list(range(300))
        assert client.get_run(run.id).info.status == "FINISHED"
        (version,) = client.search_model_versions("name = 'kosmosg'")
        assert client.get_model_version_by_alias("kosmosg", "champion").version == version.version
    finally:
        server.kill()
