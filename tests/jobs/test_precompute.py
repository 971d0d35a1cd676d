"""Precomputed columns: training with them has the losses that it has without, and only what is missing is computed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import align, build_dataset, instruct, plan, precompute
from jobs.experiment import Experiment, load
from kosmosg.data.precomputed import POSTERIOR, TEXT_STATES, pack, unpack
from kosmosg.errors import ConfigError, DataError
from kosmosg_platform.datasets.dataset import RecordDataset, write_manifest, write_records
from kosmosg_platform.inference.precompute import ComputedColumn
from kosmosg_platform.tracking import Run
from kosmosg_platform.training.dataloader import micro_batches
from kosmosg_platform.training.recipe import TrainRun

JOBS: dict[str, Any] = {"align": align, "instruct": instruct}
FP16 = 2**-11  # relative rounding error


@pytest.fixture(scope="module")
def output(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the datasets of the tiny preset and their columns; the composition set in three shards."""
    folder = tmp_path_factory.mktemp("tiny")
    build_dataset.run(load("build_dataset", "tiny", [f"output={folder}"]))
    composition = folder / "build_dataset" / "composition"
    rows = list(RecordDataset(composition))
    write_shards(composition, [rows[:24], rows[24:48], rows[48:]])
    compute(folder)
    return folder


def write_shards(folder: Path, shards: Sequence[Sequence[dict[str, Any]]]) -> None:
    """A dataset of compositions."""
    made = [write_records(folder, f"data/part-{n:05d}.parquet", "composition", rows) for n, rows in enumerate(shards)]
    write_manifest(folder, "composition", made)


def compute(output: Path, *settings: str) -> dict[tuple[str, str], ComputedColumn]:
    """What was made, by column and dataset."""
    made = precompute.run(load("precompute", "tiny", [f"output={output}", "parent=new", *settings]))
    return {(one.folder.name.partition("-")[0], one.folder.parents[1].name): one for one in made}


def stage(name: str, output: Path, *settings: str) -> Experiment:
    return load(name, "tiny", [f"output={output}", "parent=new", "train.global_batch=16", *settings])


def losses(name: str, output: Path, *settings: str, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of some updates, and the last batch."""
    experiment = stage(name, output, *settings)
    job = TrainRun(JOBS[name].recipe(experiment), experiment, "key", Run("", ""))
    module: Any = job.build_stage()
    optimizer = torch.optim.AdamW([parameter for _, parameter in module.trainable()], lr=1e-3)
    found = []
    batches = micro_batches(job, 0, 16, 0, 1)
    for step in range(steps):
        torch.manual_seed(step)
        batch = next(batches).batch
        loss = module(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found, batch


@pytest.mark.parametrize(
    ("name", "column", "replaced", "settings"),
    [
        ("instruct", POSTERIOR, "target_pixels", ()),
        ("align", TEXT_STATES, "clip_input_ids", ("data.empty_captions=0.4",)),
    ],
)
def test_a_stage_has_the_same_losses_with_its_column(
    name: str, column: str, replaced: str, settings: tuple[str, ...], output: Path
) -> None:
    exact, without = losses(name, output, "data.precomputed=never", *settings)
    stored, batch = losses(name, output, *settings)
    assert replaced in without
    assert column not in without
    assert column in batch
    assert replaced not in batch
    assert torch.equal(batch["input_ids"], without["input_ids"])
    # Values are rounded to fp16, so the losses are equal to about as many digits.
    assert stored == pytest.approx(exact, rel=2 * FP16)


def test_stage_2_with_its_column_needs_no_text_encoder(output: Path) -> None:
    experiment = stage("align", output)
    job = TrainRun(align.recipe(experiment), experiment, "key", Run("", ""))
    assert not any(name.startswith("text_encoder") for name, _ in job.build_stage().named_parameters())  # type: ignore[attr-defined]


def test_every_dataset_of_the_mixtures_gets_its_columns_once(output: Path) -> None:
    again = compute(output)
    assert {key: (made.rows, made.computed) for key, made in again.items()} == {
        (POSTERIOR, "composition"): (64, 0),
        (POSTERIOR, "edit"): (16, 0),
        (TEXT_STATES, "composition"): (64, 0),
    }
    column = RecordDataset(again[POSTERIOR, "composition"].folder)
    records = RecordDataset(output / "build_dataset" / "composition")
    assert [row["id"] for row in column] == [row["id"] for row in records]


def test_only_the_shards_that_are_new_are_computed(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "build_dataset", tmp_path / "build_dataset", symlinks=True)
    composition = tmp_path / "build_dataset" / "composition"
    rows = list(RecordDataset(composition))
    before = RecordDataset(instruct.recipe(stage("instruct", tmp_path)).columns["composition"]).manifest["shards"]
    write_shards(composition, [rows[:24], rows[24:40], [row | {"id": f"new-{row['id']}"} for row in rows[:8]]])
    # A column of an earlier state of the dataset is not read.
    assert not instruct.recipe(stage("instruct", tmp_path)).columns
    made = compute(tmp_path, "precompute.columns=[target_posterior]")[POSTERIOR, "composition"]
    now = RecordDataset(made.folder).manifest["shards"]
    assert (made.rows, made.computed) == (48, 24)
    assert now[0] == before[0]
    assert {f"data/{path.name}" for path in (made.folder / "data").iterdir()} == {shard["name"] for shard in now}
    assert instruct.recipe(stage("instruct", tmp_path)).columns


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "build_dataset", tmp_path / "build_dataset", symlinks=True)
    folder = instruct.recipe(stage("instruct", tmp_path)).columns["composition"]
    whole = {path.name: path.read_bytes() for path in (folder / "data").iterdir()}
    (folder / "manifest.json").unlink()
    lost = sorted((folder / "data").iterdir())[1]
    lost.write_bytes(b"half a file")
    (folder / "data" / f".{lost.name}.77-1.tmp").write_bytes(b"of a writer that was killed")
    assert not instruct.recipe(stage("instruct", tmp_path)).columns
    made = compute(tmp_path, "precompute.columns=[target_posterior]")[POSTERIOR, "composition"]
    assert made.computed == 24
    assert {path.name: path.read_bytes() for path in (folder / "data").iterdir()} == whole


@pytest.mark.parametrize("settings", [("data.max_seq_len=30",), ("decoder=OTHER",)])
def test_columns_of_other_models_are_not_read(settings: tuple[str, ...], output: Path, other_decoder: Path) -> None:
    given = [setting.replace("OTHER", str(other_decoder)) for setting in settings]
    assert align.recipe(stage("align", output)).columns
    assert not align.recipe(stage("align", output, *given)).columns
    with pytest.raises(ConfigError, match=r"data\.precomputed: there is no text_states .*kosmosg run precompute"):
        align.recipe(stage("align", output, "data.precomputed=always", *given))
    if "decoder" in settings[0]:
        assert not instruct.recipe(stage("instruct", output, *given)).columns


@pytest.fixture
def other_decoder(tmp_path: Path) -> Path:
    """The toy world's decoder with one weight of its VAE and one of its text encoder changed."""
    from safetensors.torch import load_file, save_file

    from kosmosg.hub import decoder_folder

    for part in ("scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        shutil.copytree(Path(decoder_folder("toyworld")) / part, tmp_path / "decoder" / part)
    for part in ("text_encoder", "vae"):
        (path,) = (tmp_path / "decoder" / part).glob("*.safetensors")
        weights = load_file(path)
        next(iter(weights.values())).view(-1)[0] += 1
        save_file(weights, path, metadata={"format": "pt"})
    return tmp_path / "decoder"


def test_a_mixture_reads_columns_of_all_its_datasets_or_of_none(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output / "build_dataset", tmp_path / "build_dataset", symlinks=True)
    shutil.rmtree(tmp_path / "build_dataset" / "edit" / "precomputed")
    assert not instruct.recipe(stage("instruct", tmp_path)).columns
    assert instruct.recipe(stage("instruct", tmp_path, "data.weights={composition: 1, t2i: 1}")).columns


def test_an_image_that_cannot_be_decoded_has_no_value_and_is_counted(
    ray_cluster: None, tmp_path: Path, output: Path
) -> None:
    good = RecordDataset(output / "build_dataset" / "composition")
    rows = [good[0], good[1] | {"image": b"no image"}, good[2]]
    write_shards(tmp_path / "build_dataset" / "composition", [rows])
    made = compute(tmp_path, "precompute.columns=[target_posterior]", "precompute.batch_size=2")
    column = made[POSTERIOR, "composition"]
    assert (column.rows, column.without) == (3, 1)
    assert [row[POSTERIOR] is None for row in RecordDataset(column.folder)] == [False, True, False]
    recipe = instruct.recipe(stage("instruct", tmp_path))
    record = recipe.datasets()["composition"][1]
    with pytest.raises(DataError, match=f"{rows[1]['id']}.*could not be decoded"):
        unpack(record, POSTERIOR, (2, 4, 4, 4))


def test_values_that_fp16_cannot_hold_are_refused() -> None:
    with pytest.raises(DataError, match=r"7e\+04.*data\.precomputed=never"):
        pack(torch.tensor([1.0, 7e4]))
    values = torch.randn(2, 3)
    torch.testing.assert_close(unpack({"x": pack(values)}, "x", (2, 3)), values, rtol=FP16, atol=1e-7)
    with pytest.raises(DataError, match="has 6 values"):
        unpack({"id": "7", "x": pack(values)}, "x", (2, 4))


def test_columns_save_over_a_quarter_of_a_stage_3_sample_at_the_papers_size() -> None:
    (full, saved) = (
        next(one.cost for one in plan.plan(["paper", *given]) if one.cost.stage == "instruct")
        for given in ((), ("data.precomputed=always",))
    )
    assert 1 - saved.flops / full.flops == pytest.approx(0.28, abs=0.02)
    assert full.flops - saved.flops == pytest.approx(1116.7e9, rel=1e-3)  # the VAE's encoder at 512 x 512


def test_a_column_of_another_dataset_is_refused(output: Path, tmp_path: Path) -> None:
    from kosmosg_platform.datasets.precomputed import RecordsWithColumn

    recipe = instruct.recipe(stage("instruct", output))
    column = RecordDataset(recipe.columns["composition"])
    write_shards(tmp_path, [list(RecordDataset(output / "build_dataset" / "composition"))[::-1]])
    with pytest.raises(DataError, match=r"row 0 .* run `kosmosg run precompute` again"):
        RecordsWithColumn(RecordDataset(tmp_path), column)[0]
