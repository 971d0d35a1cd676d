"""A folder is cleaned only by the job that made it."""

from pathlib import Path

import pytest

from kosmosg import ConfigError
from kosmosg_platform.owned_folder import MARKER, claim_files, claim_folder, refuse_overlap


def test_a_new_or_empty_folder_is_claimed_and_found_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/deep", "empty"):
        assert claim_folder(tmp_path / name, "generate") == tmp_path / name
        (tmp_path / name / "result.png").write_bytes(b"1")
        assert claim_folder(tmp_path / name, "generate") == tmp_path / name


@pytest.mark.parametrize("name", ["photo.jpg", ".hidden", "manifest.json"])
def test_a_folder_with_files_of_others_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=name):
        claim_folder(tmp_path, "build_dataset")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_of_another_job_or_content_is_refused(tmp_path: Path) -> None:
    claim_folder(tmp_path, "build_dataset", "photos 'a'")
    with pytest.raises(ConfigError, match="was written by the job build_dataset, not generate"):
        claim_folder(tmp_path, "generate")
    with pytest.raises(ConfigError, match="holds photos 'a', not photos 'b'"):
        claim_folder(tmp_path, "build_dataset", "photos 'b'")
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        claim_folder(tmp_path, "build_dataset")


@pytest.mark.parametrize("name", ["images", "results.jsonl"])
def test_names_that_a_job_writes_are_its_own_or_refused(tmp_path: Path, name: str) -> None:
    names = ("images", "results.jsonl")
    (tmp_path / "prompts.jsonl").write_text("{}")
    assert claim_files(tmp_path, "generate", names) == tmp_path
    (tmp_path / name).mkdir()
    assert claim_files(tmp_path, "generate", names) == tmp_path  # written since
    with pytest.raises(ConfigError, match="was written by the job generate, not evaluate"):
        claim_files(tmp_path, "evaluate", names)
    (tmp_path / MARKER).unlink()
    with pytest.raises(ConfigError, match=f"holds {name}, which the job generate would overwrite"):
        claim_files(tmp_path, "generate", names)
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", name}
    assert claim_files(tmp_path / "new", "generate", names).is_dir()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        claim_folder(tmp_path / "file", "generate")


def test_folders_that_overlap_are_refused_through_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for source, dest in [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("link", "a/b"), ("a", "link/new"), ("a/../a", "a")]:
        with pytest.raises(ConfigError):
            refuse_overlap(tmp_path / source, tmp_path / dest)
    refuse_overlap(tmp_path / "a", tmp_path / "ab")
