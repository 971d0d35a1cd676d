"""Nothing lost, nothing twice: builds that are killed in the middle end with the bytes of one that was not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.chaos import ROUNDS, chaos

SCRIPT = Path(__file__).with_name("killed_build.py")
ROOT = SCRIPT.parents[3]
PHOTOS = 320


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    for number in range(PHOTOS):
        path = folder / f"thing-{number % 7}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if number % 50 == 49:
            path.write_bytes(path.read_bytes()[:100])
    return folder


def start(source: Path, dest: Path, nodes: int = 1) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(SCRIPT.parent), str(ROOT), str(ROOT / "platform")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(source), str(dest), str(nodes)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(build: subprocess.Popen[str]) -> str:
    told, _ = build.communicate(timeout=240)
    assert build.returncode == 0, told[-3000:]
    return told


def finished_chunks(dest: Path) -> int:
    """Chunks that a build has finished; a shard has five."""
    while True:
        try:
            return len(list(dest.glob(".chunks/*/*.json"))) + 5 * len(list(dest.glob(".receipts/*.json")))
        except FileNotFoundError:  # a folder of chunks was removed while it was listed: its shard is finished
            continue


def wait_for_chunks(build: subprocess.Popen[str], dest: Path, count: int) -> None:
    until = time.monotonic() + 120
    while finished_chunks(dest) < count:
        assert build.poll() is None, build.communicate()[0][-3000:]
        assert time.monotonic() < until
        time.sleep(0.02)


def descendants(pid: int) -> Iterator[int]:
    """All processes that a process has started, directly or not."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == pid:
            yield int(entry.parent.name)
            yield from descendants(int(entry.parent.name))


def named(pid: int, word: str) -> list[int]:
    """Descendants whose command line or title holds a word."""
    found = []
    for each in descendants(pid):
        try:
            if word.encode() in (Path("/proc") / str(each) / "cmdline").read_bytes():
                found.append(each)
        except OSError:
            continue
    return found


def content(folder: Path) -> dict[str, bytes]:
    files = [*folder.glob("data/*"), *folder.glob("quarantine/*"), folder / "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(album: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    dest = tmp_path_factory.mktemp("undisturbed") / "set"
    told = finish(start(album, dest))
    assert f"rows {PHOTOS - 6} refused 6" in told
    return content(dest)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_drivers_lose_nothing(album: Path, undisturbed: dict[str, bytes], tmp_path: Path, seed: int) -> None:
    """The whole cluster dies with its driver, at random points; another run finishes."""
    times = 3 if "KOSMOSG_CHAOS_ROUNDS" in os.environ else 1
    points = sorted(random.Random(seed).sample(range(1, 38), times))
    for point in points:
        build = start(album, tmp_path / "set")
        wait_for_chunks(build, tmp_path / "set", point)
        os.killpg(build.pid, signal.SIGKILL)
        for pid in list(descendants(build.pid)):
            os.kill(pid, signal.SIGKILL)
        build.communicate()
        assert not (tmp_path / "set/manifest.json").exists()
    finish(start(album, tmp_path / "set"))
    assert content(tmp_path / "set") == undisturbed
    assert not list((tmp_path / "set").glob(".chunks/*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_killed_workers_and_nodes_lose_nothing(
    album: Path, undisturbed: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    """Two nodes; actors and workers are killed at random points, then a whole node: the same run ends well."""
    choose = random.Random(seed)
    build = start(album, tmp_path / "set", nodes=2)
    for point in sorted(choose.sample(range(1, 25), 2)):
        wait_for_chunks(build, tmp_path / "set", point)
        workers = named(build.pid, "ray::Map")  # actors and tasks; a dead agent would take its node with it
        os.kill(choose.choice(workers), signal.SIGKILL)
    wait_for_chunks(build, tmp_path / "set", 27)
    raylets = set(named(build.pid, "raylet/raylet"))
    (other,) = raylets - set(named(build.pid, "--head"))
    assert len(raylets) == 2
    os.kill(other, signal.SIGKILL)
    finish(build)
    assert content(tmp_path / "set") == undisturbed


@pytest.mark.slow
@chaos
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_retry_that_is_killed_ends_as_a_build_of_the_mended_photos(
    album: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Damaged photos are replaced, and `retry.reason` builds again what they had spoilt, killed at a random point."""
    choose = random.Random(seed)
    mended = tmp_path / album.name  # a source is known by its name
    shutil.copytree(album, mended)
    finish(start(mended, tmp_path / "set"))
    assert content(tmp_path / "set") == undisturbed
    for number in range(49, PHOTOS, 50):
        Image.new("RGB", (16, 16), "red").save(mended / f"thing-{number % 7}" / f"{number}.png")
    monkeypatch.setenv("RETRY_REASON", "decode")
    build = start(mended, tmp_path / "set")
    time.sleep(choose.uniform(4, 16))
    for pid in [*descendants(build.pid), build.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    build.communicate()
    assert "refused 0" in finish(start(mended, tmp_path / "set"))
    monkeypatch.delenv("RETRY_REASON")
    finish(start(mended, tmp_path / "straight"))
    assert content(tmp_path / "set") == content(tmp_path / "straight")
