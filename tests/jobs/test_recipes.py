"""What the three training jobs hand to the loop: right data, right origin, a stage that learns from both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import align, build_dataset, export, instruct, pretrain
from jobs.experiment import Experiment, load
from kosmosg.checkpoint.export import save_export
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg_platform.datasets.dataset import write_manifest, write_records
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.storage import point
from kosmosg_platform.tracking import Run
from kosmosg_platform.training.dataloader import micro_batches
from kosmosg_platform.training.initial_model import DataConfig, find_mixture
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.trainer import run_key

JOBS = {"pretrain": pretrain, "align": align, "instruct": instruct}


@pytest.fixture(scope="module")
def output(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the datasets of the tiny preset."""
    folder = tmp_path_factory.mktemp("tiny")
    build_dataset.run(load("build_dataset", "tiny", [f"output={folder}"]))
    return folder


def tiny(stage: str, output: Path, *settings: str) -> Experiment:
    return load(stage, "tiny", [f"output={output}", *settings])


def write_captions(folder: Path, rows: int = 3) -> Path:
    records: list[dict[str, Any]] = [
        {"id": str(i), "text": f"a cat number {i}", "image": None, "width": None, "height": None, "source": "test"}
        for i in range(rows)
    ]
    shard = write_records(folder, "data/part-00000.parquet", "caption", records)
    write_manifest(folder, "caption", [shard])
    return folder


@pytest.mark.parametrize("stage", JOBS)
def test_a_stage_learns_from_its_records(stage: str, output: Path) -> None:
    experiment = tiny(stage, output, "parent=new", "train.global_batch=8")
    recipe = JOBS[stage].recipe(experiment)
    job = TrainRun(recipe, experiment, "key", Run("", ""))
    torch.manual_seed(1)
    module: Any = job.build_stage()
    again: Any = job.build_stage()
    for (name, one), (_, other) in zip(module.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other), f"{name} depends on what was drawn before"
    batch = next(micro_batches(job, 0, 8, 0, 1))
    optimizer = torch.optim.AdamW([parameter for _, parameter in module.trainable()], lr=2e-3)
    losses = []
    for _ in range(6):
        torch.manual_seed(0)
        loss = module(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_workers_share_the_batch_without_overlap(output: Path) -> None:
    experiment = tiny("instruct", output, "parent=new", "train.global_batch=8")
    job = TrainRun(instruct.recipe(experiment), experiment, "key", Run("", ""))
    whole = next(micro_batches(job, 3, 8, 0, 1))["seed"].tolist()
    parts = [next(micro_batches(job, 3, 4, rank, 2))["seed"].tolist() for rank in range(2)]
    assert parts[0] + parts[1] == whole
    assert len(set(whole)) == 8


def test_the_papers_mixture_of_what_is_there(output: Path, tmp_path: Path) -> None:
    layout = RunPaths(output)
    assert find_mixture("instruct", DataConfig(), layout).weights == {"composition": 2, "edit": 2, "t2i": 1}
    captions = write_captions(tmp_path / "captions")
    # captions without images serve where words are enough, and nowhere else
    mixed = find_mixture("pretrain", DataConfig(captions=captions), layout)
    assert mixed.folders["text"] == captions
    assert mixed.folders["caption"] == layout.dataset("composition")
    assert find_mixture("align", DataConfig(captions=captions), layout).folders == {"caption": captions}
    only = find_mixture("instruct", DataConfig(weights={"t2i": 1, "edit": 0}), layout)
    assert dict(only.weights) == {"t2i": 1}
    assert only.folders == {"t2i": layout.dataset("composition")}


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        ("align", [], r"^parent: .*/pretrain/export does not exist; run `kosmosg run pretrain`"),
        ("align", ["parent=/nowhere"], r"^parent: /nowhere is no export folder"),
        ("instruct", ["parent=new", "data.folder=/nowhere"], r"^data.composition: /nowhere/composition does not exist"),
        ("align", ["parent=new", "data.captions=/nowhere"], r"^data.captions: /nowhere does not exist"),
        ("align", ["parent=new", "data.weights.edit=1"], r"^data.weights.edit: align has no such kind"),
        ("pretrain", ["model.init=huge"], r"^model.init: 'huge' is none of tiny, world, paper, and no"),
        ("instruct", ["parent=new", "decoder=/nowhere"], r"neither a Stable Diffusion folder nor a reachable Hub id"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(stage: str, settings: list[str], message: str, output: Path) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        JOBS[stage].recipe(tiny(stage, output, *settings)).facts()


def test_an_unfinished_dataset_is_no_dataset(output: Path, tmp_path: Path) -> None:
    (tmp_path / "composition" / "data").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"data.composition: .* is unfinished \(no manifest.json\)"):
        instruct.recipe(tiny("instruct", output, "parent=new", f"data.folder={tmp_path}"))


def test_what_makes_two_runs_the_same(output: Path, tmp_path: Path) -> None:
    def key(*settings: str) -> str:
        experiment = tiny("align", output, "parent=new", *settings)
        facts = align.recipe(experiment).facts()
        json.dumps(facts)
        return run_key("align", experiment, facts)

    same = key()
    for how in (
        "scale.workers=4",
        "engine.zero_stage=3",
        "train.micro_batch=2",
        "train.checkpoint_every=1",
        "tracking.experiment=x",
        "data.weights.caption=1",
        "instruct.null_drop=0.5",
    ):
        assert key(how) == same, how
    captions = write_captions(tmp_path / "captions")
    for what in (
        "train.lr=0.5",
        "train.steps=9",
        "train.seed=2",
        "engine.precision=bf16",
        "align.reconstruction=0.5",
        "data.empty_captions=0.5",
        f"data.captions={captions}",
        "model.init=toyworld",
    ):
        assert key(what) != same, what


def test_a_stage_starts_from_its_parents_weights_and_knows_them(output: Path, tmp_path: Path) -> None:
    first = pretrain.recipe(tiny("pretrain", output))
    torch.manual_seed(3)
    model, processor = first.origin.load()
    folder = save_export(model, processor, tmp_path / "pretrain" / "run" / "export")
    point(tmp_path / "pretrain" / "export", folder)
    child = align.recipe(tiny("align", tmp_path, f"data.folder={output}/build_dataset"))
    assert child.origin.parent == folder
    started, _ = child.origin.load()
    assert started.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, started.state_dict()[name]), name
    before = child.facts()["parent"]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_export(model, processor, folder)
    assert child.facts()["parent"] != before


def test_stage_2_goes_on_with_its_parents_decoder(output: Path, tmp_path: Path) -> None:
    """From an export of stage 2, and from one in half precision, as the released files are."""
    first = align.recipe(tiny("align", output, "parent=new"))
    torch.manual_seed(3)
    stage = first.build_stage()
    facts = {"stage": "align", "steps": 1, "samples": 8, "seconds": 1.0, "averaged_weights": False, "mlflow_run": ""}
    first.save(stage, tmp_path / "first", facts)
    settings = (f"data.folder={output}/build_dataset", f"parent={tmp_path / 'first'}")
    child = align.recipe(tiny("align", tmp_path, *settings))
    before = child.facts()["aligner_decoder"]
    assert "aligner_decoder" not in first.facts()
    assert "aligner_decoder" not in instruct.recipe(tiny("instruct", output, f"parent={tmp_path / 'first'}")).facts()
    torch.manual_seed(4)
    started = child.build_stage()
    for (name, one), (_, other) in zip(stage.trainable(), started.trainable(), strict=True):
        assert torch.equal(one, other), name

    stage.half()
    first.save(stage, tmp_path / "first", facts)
    assert child.facts()["aligner_decoder"] != before
    from_half = child.build_stage()
    assert {parameter.dtype for parameter in from_half.parameters()} == {torch.float32}
    assert from_half.decoder.training


def test_a_new_models_aligner_fits_its_decoder(output: Path) -> None:
    recipe = pretrain.recipe(tiny("pretrain", output))
    config = recipe.build_stage().model.config
    assert (config.aligner_config.d_model, config.aligner_config.num_queries) == (128, 24)
    assert config.text_config.vocab_size == recipe.origin.processor().vocab_size


def test_export_refuses_what_is_no_run(output: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is no run folder"):
        export.run(tiny("export", output, f"source={tmp_path}"))
    with pytest.raises(ConfigError, match="no finished stage under"):
        export.run(tiny("export", tmp_path))
