"""Images of an evaluation set and copies are turned down by lists on disk, which are loaded once in a process."""

import copy
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.filters import contaminated, duplicate
from kosmosg.data.filters.contaminated import ContaminatedFilter
from kosmosg.data.filters.duplicate import DuplicateFilter
from kosmosg.data.hash_list import find_duplicates, open_hash_list, write_duplicates, write_hash_list
from kosmosg.data.image_hash import HashedImage, hash_images
from kosmosg.errors import ConfigError


def picture(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, format=form)
    return out.getvalue()


def hash_list(path: Path, seeds: range) -> Path:
    hashed = list(hash_images((f"eval/{seed}.png", encoded(picture(seed))) for seed in seeds))
    write_hash_list(path, [row for row in hashed if isinstance(row, HashedImage)])
    return path


def test_copies_of_listed_images_are_turned_down_and_others_kept(tmp_path: Path) -> None:
    judge = ContaminatedFilter(hashes=str(hash_list(tmp_path / "eval.parquet", range(40))))
    for seed in range(60):
        for version in (
            encoded(picture(seed)),
            encoded(picture(seed, (300, 250)), "JPEG"),
            encoded(picture(seed), "WEBP"),
        ):
            found = judge(Sample(f"train/{seed}", "train", version))
            assert (found is not None) == (seed < 40)
            if found is not None:
                assert found.reason == "contaminated"
                assert f"'eval/{seed}.png'" in found.message


def test_the_radius_is_a_limit(tmp_path: Path) -> None:
    """An image whose bits are changed in the list is found within the radius, not beyond."""
    (row,) = (row for row in hash_images([("a", encoded(picture(0)))]) if isinstance(row, HashedImage))
    for flips in range(6):
        path = tmp_path / f"{flips}.parquet"
        write_hash_list(path, [row._replace(hash=row.hash ^ sum(1 << 11 * bit for bit in range(flips)))])
        for radius in range(6):
            judge = ContaminatedFilter(hashes=str(path), radius=radius)
            assert (judge(Sample("b", "b", encoded(picture(0)))) is not None) == (flips <= radius)


def test_flat_images_are_never_contaminated(tmp_path: Path) -> None:
    white = encoded(Image.new("RGB", (50, 50), "white"))
    write_hash_list(
        tmp_path / "eval.parquet", [row for row in hash_images([("w", white)]) if isinstance(row, HashedImage)]
    )
    assert ContaminatedFilter(hashes=str(tmp_path / "eval.parquet"))(Sample("a", "a", white)) is None


def duplicates(folder: Path, name: str = "duplicates.parquet") -> Path:
    rows = [
        HashedImage(f"img/{row}", 1000 + row // 3 * 2**20 + 1, hashlib.sha256(b"%d" % row).digest())
        for row in range(30)
    ]
    write_hash_list(folder / "list.parquet", rows)
    write_duplicates(folder / name, find_duplicates(open_hash_list(folder / "list.parquet"), radius=0))
    return folder / name


def test_all_but_the_first_of_each_group_are_turned_down(tmp_path: Path) -> None:
    judge = DuplicateFilter(duplicates=str(duplicates(tmp_path)))
    answers = {f"img/{row}": judge(Sample(f"img/{row}", "s", b"is not decoded")) for row in range(40)}
    kept = {name for name, answer in answers.items() if answer is None}
    groups = [sorted(f"img/{row}" for row in range(start, start + 3)) for start in range(0, 30, 3)]
    assert kept == {group[0] for group in groups} | {f"img/{row}" for row in range(30, 40)}
    assert {answer.reason for answer in answers.values() if isinstance(answer, Rejection)} == {"duplicate"}


def test_a_list_is_loaded_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    for module, name in ((contaminated, "open_hash_list"), (duplicate, "open_duplicates")):
        module._load.cache_clear()
        original = getattr(module, name)

        def counted(path: str, original: object = original) -> object:
            listed = original(path)  # type: ignore[operator]
            numbers = listed.numbers
            listed.numbers = lambda column: opened.append(str(path)) or numbers(column)
            return listed

        monkeypatch.setattr(module, name, counted)
    sample = Sample("a", "a", encoded(picture(99)))
    for made in (
        ContaminatedFilter(hashes=str(hash_list(tmp_path / "eval.parquet", range(3)))),
        DuplicateFilter(duplicates=str(duplicates(tmp_path))),
    ):
        for _ in range(3):
            judge = copy.copy(made)  # through the same door as pickle
            assert judge(sample) is None
            assert judge(sample) is None
        assert len(opened) == 1
        opened.clear()


def test_the_loaded_list_does_not_travel(tmp_path: Path) -> None:
    judge = ContaminatedFilter(hashes=str(hash_list(tmp_path / "eval.parquet", range(30))))
    before = dict(judge.__getstate__())
    judge(Sample("a", "a", encoded(picture(99))))
    assert judge.__getstate__() == before == {"hashes": judge.hashes, "radius": judge.radius}
    assert copy.copy(judge) == judge


def test_a_list_that_was_made_anew_is_read_anew_and_has_another_identity(tmp_path: Path) -> None:
    path = hash_list(tmp_path / "eval.parquet", range(3))
    sample = Sample("a", "a", encoded(picture(5)))
    first = ContaminatedFilter(hashes=str(path))
    assert first(sample) is None
    identity = first.identity()
    hash_list(path, range(6))
    again = ContaminatedFilter(hashes=str(path))
    assert again(sample) is not None
    assert again.identity() != identity


@pytest.mark.parametrize("kind", [ContaminatedFilter, DuplicateFilter])
def test_a_missing_or_other_file_is_told_when_it_is_configured(kind: type, tmp_path: Path) -> None:
    setting = "hashes" if kind is ContaminatedFilter else "duplicates"
    with pytest.raises(ConfigError, match=f"^{setting}: "):
        kind(**{setting: str(tmp_path / "missing.parquet")})
    other = duplicates(tmp_path) if kind is ContaminatedFilter else hash_list(tmp_path / "eval.parquet", range(2))
    with pytest.raises(ConfigError, match="is no list of"):
        kind(**{setting: str(other)})
    with pytest.raises(ConfigError, match="radius"):
        ContaminatedFilter(hashes=str(hash_list(tmp_path / "hashes.parquet", range(2))), radius=40)
