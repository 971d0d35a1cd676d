"""One resolver of model names: shipped models, folders, URLs and Hub ids mean the same everywhere."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from kosmosg import CheckpointError, ConfigError, KosmosG, KosmosGConfig, KosmosGPipeline, KosmosGProcessor
from kosmosg.checkpoint.export import load_export, save_export
from kosmosg.hub import (
    MODELS,
    decoder_folder,
    decoder_of,
    fetch_folder,
    model_for,
    model_names,
    resolve_model,
    shipped_decoder,
)


@pytest.fixture
def export(tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tmp_path: Path) -> Path:
    return save_export(tiny_model, tiny_processor, tmp_path / "someone" / "export")


# -- what ships ------------------------------------------------------------------------------------------------------


def test_every_model_that_ships_opens_by_its_name() -> None:
    assert len(model_names()) >= 3
    for name in model_names():
        folder = resolve_model(name)
        assert folder.is_absolute()
        assert load_export(folder)[0].config.model_type == "kosmosg"
        assert Path(decoder_folder(name.partition(":")[0])) == folder.parent


@pytest.mark.parametrize("name", ["toyworld:instruct", "toyworld:align"])
def test_the_library_takes_the_name_where_transformers_takes_a_path(name: str) -> None:
    model, processor = KosmosG.from_pretrained(name), KosmosGProcessor.from_pretrained(name)
    expected, its_processor = load_export(resolve_model(name))
    assert KosmosGConfig.from_pretrained(name).to_diff_dict() == expected.config.to_diff_dict()
    assert processor.vocab_size == its_processor.vocab_size
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_pipeline_by_its_name_alone() -> None:
    pipe = KosmosGPipeline.from_pretrained("toyworld:instruct")
    made_for = MODELS["toyworld"]
    assert (pipe.config.default_steps, pipe.config.default_guidance) == (
        made_for.default_steps,
        made_for.default_guidance,
    )
    pipe.set_progress_bar_config(disable=True)
    spelled_out = KosmosGPipeline.from_pretrained(resolve_model("toyworld:instruct"), decoder="toyworld")
    spelled_out.set_progress_bar_config(disable=True)
    images = [
        each("a red ball", generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="pt").images
        for each in (pipe, spelled_out)
    ]
    assert torch.equal(*images)


def test_an_export_brings_the_decoder_that_it_was_trained_for(
    tiny_model: KosmosG, tiny_processor: KosmosGProcessor, tiny_sd_parts: Path, tmp_path: Path
) -> None:
    settings = {"decoder": str(tiny_sd_parts)}
    folder = save_export(tiny_model, tiny_processor, tmp_path / "trained", experiment=settings)
    assert decoder_of(folder, folder) == str(tiny_sd_parts)
    pipe = KosmosGPipeline.from_pretrained(folder)
    named = KosmosGPipeline.from_pretrained(folder, decoder=tiny_sd_parts)
    for one, other in zip(pipe.unet.parameters(), named.unet.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_name_of_earlier_releases_is_understood_and_said(caplog: pytest.LogCaptureFixture) -> None:
    from kosmosg import hub

    hub._say_new_name.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert resolve_model("world:align") == resolve_model("toyworld:align")
        assert resolve_model("world:align") == resolve_model("toyworld:align")
        assert decoder_folder("world") == decoder_folder("toyworld")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "'world:align' is now called 'toyworld:align'; please use the new name",
        "'world' is now called 'toyworld'; please use the new name",
    ]


def test_a_decoder_that_ships_has_a_model_and_others_have_none(tiny_sd_parts: Path) -> None:
    assert model_for("toyworld") == model_for("world") == "toyworld:instruct"
    assert model_for(str(tiny_sd_parts)) is None
    assert shipped_decoder(str(tiny_sd_parts)) is None
    assert (
        decoder_folder("stable-diffusion-v1-5/stable-diffusion-v1-5") == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    )


def test_the_resolver_is_light() -> None:
    code = "import sys, kosmosg.hub as hub; hub.resolve_model('toyworld:instruct'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# -- folders and URLs ------------------------------------------------------------------------------------------------


def test_a_folder_is_itself_in_full(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(export.parent)
    assert resolve_model(export) == resolve_model("export") == resolve_model(export.as_uri()) == export
    monkeypatch.chdir(export.parents[1])
    assert resolve_model("someone/export") == export  # a folder goes before a Hub id of the same name
    (export.parent / "toyworld").mkdir()
    monkeypatch.chdir(export.parent)
    assert decoder_folder("toyworld") == "toyworld"  # and before a decoder that ships


def test_a_remote_folder_is_copied_once_and_again_when_it_changes(export: Path, tmp_path: Path) -> None:
    remote = SubTreeFileSystem(str(export.parent), LocalFileSystem())
    copy = fetch_folder(remote, "export", "s3://bucket/export", tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in export.iterdir()
    }
    (copy / "config.json").touch()
    before = (copy / "config.json").stat().st_mtime_ns
    assert fetch_folder(remote, "export", "s3://bucket/export", tmp_path / "cache") == copy
    assert (copy / "config.json").stat().st_mtime_ns == before
    (export / "README.md").write_text("another card")
    changed = fetch_folder(remote, "export", "s3://bucket/export", tmp_path / "cache")
    assert changed != copy
    assert (changed / "README.md").read_text() == "another card"
    assert [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")] == []


def test_an_empty_place_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    remote = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    for root, said in {"empty": "there is nothing at gs://b/m", "absent": "gs://b/m cannot be read"}.items():
        with pytest.raises(CheckpointError, match=said):
            fetch_folder(remote, root, "gs://b/m", tmp_path / "cache")


@pytest.mark.parametrize("url", ["hf://someone/pipe", "https://huggingface.co/someone/pipe", "someone/pipe"])
def test_a_hub_id_and_its_urls_mean_the_cached_snapshot(url: str, export: Path, tmp_path: Path) -> None:
    """The cache of huggingface_hub, laid out as a download leaves it: no network is needed."""
    repository = tmp_path / "cache" / "models--someone--pipe"
    (repository / "snapshots").mkdir(parents=True)
    export.rename(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    folder = resolve_model(url, cache_dir=tmp_path / "cache", local_files_only=True)
    assert (folder / "config.json").is_file()


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("toyworld:instrct", "did you mean toyworld:instruct?"),
        ("toywrld:align", "did you mean toyworld:align?"),
        ("runs/instrct/export", "did you mean runs/instruct?"),
        ("rnus", "did you mean runs?"),
        ("quite/another/thing", "give one that ships (toyworld:pretrain, toyworld:align, toyworld:instruct)"),
    ],
)
def test_a_slip_of_the_pen_is_told_with_the_nearest_name(
    name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "instruct" / "export").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for resolve in (resolve_model, KosmosGPipeline.from_pretrained):
        with pytest.raises(CheckpointError) as told:
            resolve(name)
        assert str(told.value).startswith(f"there is no model {name!r}; ")
        assert hint in str(told.value)
    if ":" in name:
        for kind in (KosmosG, KosmosGProcessor, KosmosGConfig):
            with pytest.raises(CheckpointError, match="did you mean"):
                kind.from_pretrained(name)


def test_a_url_of_a_kind_that_nobody_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ftp://host/model is not the URL of a model folder .*s3://, gs://"):
        resolve_model("ftp://host/model")


def test_a_hub_id_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="someone/absent is neither a folder nor a reachable Hub id"):
        resolve_model("someone/absent", cache_dir=tmp_path, local_files_only=True)
