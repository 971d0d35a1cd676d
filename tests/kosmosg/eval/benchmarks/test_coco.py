"""COCO's captions: the published subset to the letter, plain folders, and one sentence for what is missing."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from kosmosg.errors import DataError
from kosmosg.eval.benchmarks.coco import digest_captions, first, own_images, published_subset, read_folder


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A val2014 of 20 images with three captions each."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    images = [{"id": 100 + number, "file_name": f"COCO_val2014_{number:012}.jpg"} for number in range(20)]
    captions = [
        {"id": 7 * number, "image_id": 100 + number % 20, "caption": f"caption {number}"} for number in range(60)
    ]
    content = {"images": images, "annotations": captions}
    (tmp_path / "annotations" / "captions_val2014.json").write_text(json.dumps(content))
    for image in images:
        Image.new("RGB", (4, 4)).save(tmp_path / "val2014" / image["file_name"])
    return tmp_path


def test_subset_is_the_published_rule(coco: Path) -> None:
    """sample_kosmosg_coco.py: `random.seed(0)`, then `random.sample(annotations, 30000)` in the order of the sample."""
    annotations = json.loads((coco / "annotations" / "captions_val2014.json").read_text())["annotations"]
    random.seed(0)
    expected = [entry["caption"] for entry in random.sample(annotations, 30)]
    held = read_folder(coco)
    assert [caption.text for caption in published_subset(held.captions, 30)] == expected
    assert (held.origin, len(held.images)) == ("val2014", 20)


def test_subset_never_moves() -> None:
    """Python's sample of seed 0, recorded: another version that drew otherwise would give another FID."""
    assert published_subset(list(range(1000)), 5) == [864, 394, 776, 911, 430]  # type: ignore[arg-type]


def test_asking_for_the_subset_leaves_the_global_generator_alone(coco: Path) -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    published_subset(read_folder(coco).captions, 30)
    assert random.random() == expected


def test_captions_know_their_images(coco: Path) -> None:
    held = read_folder(coco)
    assert held.captions[21].image == coco / "val2014" / "COCO_val2014_000000000001.jpg"
    assert own_images(held.captions) == list(held.images)


@pytest.mark.parametrize("form", ["jsonl", "tsv"])
def test_plain_folders(tmp_path: Path, form: str) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / name)
    lines = {
        "jsonl": '{"caption": "a cat", "image": "b.jpg"}\n\n{"caption": "a line\\u2028break"}\n',
        "tsv": "b.jpg\ta cat\r\na line\u2028break\n",
    }
    (tmp_path / f"captions.{form}").write_text(lines[form], encoding="utf-8", newline="")
    held = read_folder(tmp_path)
    assert [caption.text for caption in held.captions] == ["a cat", "a line\u2028break"]
    assert [caption.image for caption in held.captions] == [tmp_path / "images" / "b.jpg", None]
    assert [path.name for path in held.images] == ["a.png", "b.jpg"]
    assert [caption.text for caption in first(held.captions, 1)] == ["a cat"]
    with pytest.raises(DataError, match=r"caption 1 \('a line.*names no image"):
        own_images(held.captions)


def test_digest_knows_captions_and_images(coco: Path) -> None:
    held = read_folder(coco)
    known = digest_captions(held.captions, held.images)
    assert digest_captions(held.captions[1:], held.images) != known
    assert digest_captions(held.captions, held.images[::-1]) == known, "images have no order"
    assert digest_captions(held.captions, held.images[1:]) != known


class TestMistakes:
    def test_no_folder_and_no_captions(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no folder"):
            read_folder(tmp_path / "none")
        with pytest.raises(DataError, match=r"holds no captions; give COCO's folder"):
            read_folder(tmp_path)

    def test_missing_images_are_counted(self, coco: Path) -> None:
        (coco / "val2014" / "COCO_val2014_000000000003.jpg").unlink()
        with pytest.raises(DataError, match=r"lacks 1 of 20 images, the first is COCO_val2014_000000000003\.jpg"):
            read_folder(coco)

    def test_damaged_files(self, coco: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
        (coco / "annotations" / "captions_val2014.json").write_text('{"images": []}')
        with pytest.raises(DataError, match="is not COCO's captions file"):
            read_folder(coco)
        (coco / "annotations" / "captions_val2014.json").write_text("{")
        with pytest.raises(DataError, match="is not JSON"):
            read_folder(coco)
        plain = tmp_path_factory.mktemp("plain")
        (plain / "captions.jsonl").write_text('{"text": "a cat"}\n')
        with pytest.raises(DataError, match="line 1 is not"):
            read_folder(plain)

    def test_more_captions_than_there_are(self, coco: Path) -> None:
        captions = read_folder(coco).captions
        with pytest.raises(DataError, match="30000 captions are asked for, the folder has 60"):
            published_subset(captions, 30_000)
        with pytest.raises(DataError, match="61 captions are asked for, the folder has 60"):
            first(captions, 61)
