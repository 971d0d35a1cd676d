"""Settings that take a folder or a URL, and the local copies that stand for URLs."""

from pathlib import Path

import pytest
from pydantic import Field

from kosmosg.errors import ConfigError
from kosmosg_platform.config import Section, plain, to_yaml, validate
from kosmosg_platform.stores.location import Location, local_copy, told, url_of

URLS = [
    "s3://bucket",
    "s3://bucket/runs/demo",
    "s3://bucket/a b/ü",
    "gs://bucket/runs",
    "hdfs://namenode:8020/user/lab/runs",
    "s3://bucket/runs?endpoint_override=localhost:9000&scheme=http",
]


class Places(Section):
    """Settings of every form in which a place is given."""

    output: Location = Path("runs")
    dest: Location | None = None
    many: dict[str, Location] = Field(default_factory=dict)
    disk: Path | None = None


@pytest.mark.parametrize("url", URLS)
def test_a_url_comes_back_from_its_copy(url: str) -> None:
    copy = local_copy(url)
    assert copy.is_absolute()
    assert url_of(copy) == told(copy) == url
    inside = url_of(copy / "x/y.json")
    assert inside is not None
    assert inside.partition("?")[0] == url.partition("?")[0] + "/x/y.json"
    assert inside.partition("?")[2] == url.partition("?")[2]


@pytest.mark.parametrize("url", URLS)
def test_settings_keep_what_was_given(url: str) -> None:
    given = {"output": url, "dest": url, "many": {"x": url, "y": "folder"}}
    places = validate(Places, given)
    assert places.output == places.dest == places.many["x"] == local_copy(url)
    assert plain(places) == {**given, "disk": None}
    again = validate(Places, {**plain(places)})
    assert again == places
    assert url in to_yaml(places)


def test_nodes_with_caches_at_other_places_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KOSMOSG_CACHE", str(tmp_path / "one"))
    copy = local_copy("s3://bucket/runs")
    monkeypatch.setenv("KOSMOSG_CACHE", str(tmp_path / "two"))
    assert url_of(copy) == "s3://bucket/runs"


def test_folders_stay_what_they_were(tmp_path: Path) -> None:
    places = validate(Places, {"output": "runs/demo", "dest": f"file://{tmp_path}/x", "many": {"x": str(tmp_path)}})
    assert (places.output, places.dest, places.many["x"]) == (Path("runs/demo"), tmp_path / "x", tmp_path)
    assert [url_of(path) for path in (places.output, tmp_path, Path("s3"))] == [None] * 3


@pytest.mark.parametrize(
    ("setting", "url", "says"),
    [
        ("output", "https://host/runs", "s3://"),
        ("output", "s3:///runs", "s3://"),
        ("dest", "s3://key:secret@bucket/x", "AWS_SECRET_ACCESS_KEY"),
        ("many", "s3://bucket/../x", "without"),
        ("disk", "s3://bucket/x", "is a URL"),
    ],
)
def test_what_is_no_place_to_write_is_refused(setting: str, url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=setting) as refused:
        validate(Places, {setting: {"k": url} if setting == "many" else url})
    assert says in str(refused.value)
