"""Stores and disks that fail while a dataset is built: one sentence, nothing lost, the same bytes afterwards."""

import random
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.chaos import ROUNDS, chaos
from tests.object_store import ObjectStore
from tests.platform.datasets.test_killed_builds import content, start, wait_for_chunks
from tests.small_disk import remount

PHOTOS = 120

pytestmark = pytest.mark.slow


def add(folder: Path, first: int, last: int) -> None:
    """Photos by number; every fiftieth is cut off."""
    for number in range(first, last):
        path = folder / f"thing-{number % 7}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if number % 50 == 49:
            path.write_bytes(path.read_bytes()[:100])


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "album"
    add(folder, 0, PHOTOS)
    return folder


def ended(build: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and last line; what is shown has no traceback."""
    told, _ = build.communicate(timeout=240)
    assert "Traceback" not in told, told[-3000:]
    return build.returncode, told.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def finished(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("undisturbed") / "set"
    assert ended(start(album, dest))[0] == 0
    return dest


@pytest.fixture(scope="module")
def undisturbed(finished: Path) -> dict[str, bytes]:
    return content(finished)


@pytest.fixture
def bucket(object_store: ObjectStore, album: Path, tmp_path: Path) -> str:
    return object_store.upload(album, f"{tmp_path.name}/album")


@chaos
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_build_waits_for_a_store_that_comes_back(
    object_store: ObjectStore,
    bucket: str,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    seed: int,
) -> None:
    build = start(bucket, tmp_path / "set")
    wait_for_chunks(build, tmp_path / "set", random.Random(seed).randrange(1, 10))
    object_store.kill()
    back = threading.Timer(3, object_store.start)
    back.start()
    code, told = ended(build)
    back.join()
    assert (code, told) == (0, "rows 118 refused 2 nodes 1")
    assert content(tmp_path / "set") == undisturbed


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_build_ends_with_a_sentence_when_a_store_stays_away(
    object_store: ObjectStore,
    bucket: str,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setenv("STORE_PATIENCE", "1")
    build = start(bucket, tmp_path / "set")
    wait_for_chunks(build, tmp_path / "set", random.Random(seed).randrange(1, 10))
    object_store.kill()
    try:
        code, told = ended(build)
    finally:
        object_store.start()
    assert code == 1
    assert bucket in told
    assert "did not answer" in told
    assert "run the same command again" in told
    assert not (tmp_path / "set/manifest.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").glob("data/*.parquet")}
    assert ended(start(bucket, tmp_path / "set"))[0] == 0
    assert content(tmp_path / "set") == undisturbed
    assert {path: path.stat().st_mtime_ns for path in done} == done  # finished shards are not built again


@chaos
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_full_or_read_only_disk_costs_nothing(
    album: Path, finished: Path, small_disk: Path, tmp_path: Path, seed: int
) -> None:
    """Photos are added to a dataset, and the disk is full at some point: the old one stays until the new one is."""
    chosen = random.Random(seed)
    dest = small_disk / "set"
    shutil.copytree(finished, dest)
    before = content(dest)

    grown = tmp_path / "more/album"  # of the same name: the same source
    shutil.copytree(album, grown)
    add(grown, PHOTOS, 2 * PHOTOS)
    used = sum(path.stat().st_blocks * 512 for path in small_disk.rglob("*"))
    remount(small_disk, f"size={used // 1024 + chosen.randrange(12, 120)}k")
    code, told = ended(start(grown, dest))
    assert code == 1, told
    assert str(dest) in told
    assert "No space left on device; make room" in told
    assert content(dest) == before
    assert not list(dest.rglob("*.tmp"))

    remount(small_disk, "size=64m,ro")
    code, told = ended(start(grown, dest))
    assert code == 1, told
    assert "Read-only file system; make it writable" in told
    assert content(dest) == before

    remount(small_disk, "size=64m,rw")
    assert ended(start(grown, dest))[0] == 0
    after = content(dest)
    assert {name for name, data in before.items() if after[name] != data} == {"manifest.json"}
    with_more = tmp_path / "straight"
    shutil.copytree(finished, with_more)
    assert ended(start(grown, with_more))[0] == 0  # nothing failed here
    assert content(with_more) == after
