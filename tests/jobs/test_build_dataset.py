"""The job build_dataset as a user runs it: presets, real photos, real captions, and mistakes told in one sentence."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.build_dataset import run
from jobs.experiment import load, main
from kosmosg import ConfigError
from kosmosg.data.image_bytes import decode_image, decode_mask
from kosmosg_platform.datasets.dataset import RecordDataset, read_manifest
from kosmosg_platform.reports.dataset_report import is_current
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.training.mixture import find_mixture

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobs.build_dataset", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["photos", "source={tmp}/absent"], "there is no file or folder"),
        (["photos", "source={tmp}/empty"], "no photos under"),
        (["photos"], "source: say what to read"),
        (["captions", "source={tmp}/absent.txt"], "there is no file or folder"),
        (["tiny", "build.stpes=[]"], "did you mean build.steps?"),
        (["tiny", "build.steps=[{{use: sidecar}}]"], "build.steps.0: sidecar cannot annotate this source"),
        (["tiny", "build.captioner.use=blip2"], "build.captioner: this setting is now called build.steps"),
        (["tiny", "source=photos"], "generates its data and does not read"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    given = [argument.format(tmp=tmp_path) for argument in arguments] + [f"output={tmp_path}/out"]
    with pytest.raises(SystemExit) as end:
        main("build_dataset", run, given)
    assert end.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert told in sentence
    assert not (tmp_path / "out").exists()


def photos_in(folder: Path) -> dict[str, bytes]:
    """Three photos and a note of a user, and what is in them."""
    for name in ("dog/01.jpg", "dog/part-00007.parquet", "data/part-00003.jpg", "quarantine/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jpg"):
            Image.effect_noise((48, 48), 90).convert("RGB").save(folder / name)
        else:
            (folder / name).write_text("mine")
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("source", "dest"),
    [
        (".", "."),
        (".", "data"),
        (".", "new/deep"),
        ("dog", "."),
        ("linked", "dog"),
        ("dog", "../photos/data/../dog"),
        ("dog", "quarantine"),
        ("dog", "data"),
    ],
)
def test_no_file_of_a_user_is_ever_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, source: str, dest: str
) -> None:
    """Whether dest is the source, lies in it or around it, or is any folder with files: refused, nothing touched."""
    folder = tmp_path / "photos"
    before = photos_in(folder)
    (folder / "linked").symlink_to(folder / "dog")
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main("build_dataset", run, ["photos", f"source={source}", f"dest={dest}", f"output={tmp_path}/out"])
    assert end.value.code == 2
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert "dest" in sentence
    assert {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_built_without_a_dest_is_found_by_training(tmp_path: Path) -> None:
    """The default place of a dataset is that of its record kind."""
    photos_in(tmp_path / "photos")
    (tmp_path / "words.txt").write_text("a red ball\na small cat\n")
    (tmp_path / "pages.txt").write_text("a longer document about cats\n" * 3)
    paths = RunPaths(tmp_path / "out")
    output = f"output={paths.output}"
    run(load("build_dataset", "photos", [f"source={tmp_path}/photos/dog", output]))
    run(load("build_dataset", "captions", [f"source={tmp_path}/words.txt", output]))
    run(load("build_dataset", "tiny", [f"source={tmp_path}/pages.txt", "build.source.use=text_corpus", output]))
    data = load("pretrain", "tiny").data
    assert set(find_mixture("instruct", data, paths).folders) == {"composition", "t2i"}
    assert find_mixture("align", data, paths).folders["caption"] == paths.output / "build_dataset" / "captions"
    assert find_mixture("pretrain", data, paths).folders["text"] == paths.output / "build_dataset" / "text"
    with pytest.raises(ConfigError, match=r"holds a dataset of .* 'words\.txt', not .* 'pages\.txt'"):
        run(load("build_dataset", "captions", [f"source={tmp_path}/pages.txt", output]))


def test_the_command_line_ends_with_exit_code_2_too(tmp_path: Path) -> None:
    given = command("photos", f"source={tmp_path}/absent", f"output={tmp_path}/out")
    done = subprocess.run(given, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "there is no file or folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_tiny_builds_every_kind_of_the_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = load("build_dataset", "tiny", [f"output={tmp_path}"])
    composition, edit, questions = run(experiment)
    assert (composition.kind, edit.kind, questions.kind) == ("composition", "edit", "caption")
    assert len(RecordDataset(tmp_path / "build_dataset/composition", "composition")) == experiment.toyworld.scenes
    assert len(RecordDataset(tmp_path / "build_dataset/edit", "edit")) == experiment.toyworld.edits
    asked = RecordDataset(tmp_path / "build_dataset/questions", "caption")
    assert len(asked) == experiment.toyworld.questions
    assert asked[0]["text"].startswith("Question: ")
    assert Image.open(tmp_path / "build_dataset/composition/sheet.png").width > 300
    for name in ("composition", "edit", "questions"):
        assert is_current(tmp_path / "build_dataset" / name)
    told = capsys.readouterr().out
    assert f"composition: {experiment.toyworld.scenes} records" in told
    assert "rows/s" in told
    assert [result.built_shards for result in run(experiment)] == [0, 0, 0]


@pytest.mark.usefixtures("ray_cluster")
def test_real_photos_become_composition_records(shared_data: Path, tmp_path: Path) -> None:
    for folder in sorted((shared_data / "data/dreambench").glob("*/"))[:12]:
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for path in folder.glob("*.jpg"):
            shutil.copyfile(path, tmp_path / "photos" / folder.name / path.name)
    data = next((tmp_path / "photos" / "cat").glob("*.jpg")).read_bytes()
    (tmp_path / "photos" / "cat" / "corrupt.jpg").write_bytes(data[: len(data) // 3])
    (result,) = run(
        load(
            "build_dataset",
            "photos",
            [f"source={tmp_path}/photos", f"dest={tmp_path}/set", "build.source.working_size=400"],
        )
    )
    assert (result.rows, result.refused) == (12, 1)
    assert result.reasons == {"decode: unreadable": 1}
    records = {record["id"].split("/")[0]: record for record in RecordDataset(tmp_path / "set", "composition")}
    assert records["bear_plushie"]["caption"] == "a photo of a bear plushie"
    assert [entity["text"] for entity in records["bear_plushie"]["entities"]] == ["bear plushie"]
    assert records["cat2"]["entities"][0]["text"] == "cat"
    for record in records.values():
        (entity,) = record["entities"]
        x0, y0, x1, y1 = entity["box"]
        assert x1 - x0 == y1 - y0
        assert x1 <= record["width"]
        assert y1 <= record["height"]
        assert decode_image(record["image"]).size == (record["width"], record["height"])
        crop, mask = decode_image(entity["crop"]), decode_mask(entity["mask"])
        assert (crop.height, crop.width) == mask.shape
        assert 0.15 < mask.mean() < 1
        assert entity["score"] > 0.9
    # The can stands upright in the middle: its mask covers a tall box and not its surroundings.
    mask = decode_mask(records["can"]["entities"][0]["mask"])
    assert np.flatnonzero(mask.any(axis=0)).size < 0.8 * mask.shape[1]
    assert (tmp_path / "set/sheet.png").stat().st_size > 20_000


@pytest.mark.usefixtures("ray_cluster")
def test_real_captions_become_a_dataset(shared_data: Path, tmp_path: Path) -> None:
    arguments = [f"source={shared_data}/data/captions", f"dest={tmp_path}/set", "limit=60000"]
    (result,) = run(load("build_dataset", "captions", arguments))
    captions = RecordDataset(tmp_path / "set", "caption")
    assert 50_000 < len(captions) == result.rows <= 60_000  # a limit takes whole ranges of lines
    assert captions[0]["text"].startswith("Two young guys with shaggy hair")
    assert captions[len(captions) - 1]["source"] != captions[0]["source"] == "flickr30k.train.1.txt.gz"
    assert captions[0]["image"] is None
    assert "annotators" in read_manifest(tmp_path / "set")


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """kill -9 of the driver after its first shards; the same command then finishes, and keeps what was there."""
    world = ["toyworld.scenes=20000", "toyworld.edits=0", "toyworld.questions=0"]
    arguments = ["tiny", *world, "build.source.shard_rows=200", f"output={tmp_path}"]
    folder = tmp_path / "build_dataset/composition"
    first = subprocess.Popen(
        command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while len(list(folder.glob(".receipts/part-*.json"))) < 3 and time.monotonic() < until:
        assert first.poll() is None, "the build ended before it could be killed"
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (folder / "manifest.json").exists()
    shorter = [*arguments, "limit=2000"]  # the shards of a smaller limit are the first ones of the larger
    second = subprocess.run(command(*shorter), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr
    kept = int(second.stdout.split(" kept")[0].rsplit(",", 1)[-1])
    assert kept >= 2
    assert len(RecordDataset(folder)) == 2000
