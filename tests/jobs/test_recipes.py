"""What the three training jobs hand to the loop: right data, right origin, a stage that learns from both."""

import gc
import json
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import align, build_dataset, export, instruct, pretrain
from jobs.experiment import Experiment, load
from kosmosg.checkpoint.export import save_export
from kosmosg.errors import CheckpointError, ConfigError
from kosmosg_platform.datasets.dataset import write_manifest, write_records
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.storage import point
from kosmosg_platform.tracking import Run
from kosmosg_platform.training.dataloader import micro_batches
from kosmosg_platform.training.mixture import DataConfig, find_mixture
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.sample_images import sample_sheet
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
    batch = next(micro_batches(job, 0, 8, 0, 1)).batch
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
    whole = next(micro_batches(job, 3, 8, 0, 1)).batch["seed"].tolist()
    parts = [next(micro_batches(job, 3, 4, rank, 2)).batch["seed"].tolist() for rank in range(2)]
    assert parts[0] + parts[1] == whole
    assert len(set(whole)) == 8


def write_documents(folder: Path) -> Path:
    """Documents from no line at all to far more than a row, one of them a single line."""
    texts = [
        "\n".join(f"a cat and a dog number {line} in the snow." for line in range(count))
        for count in (0, 1, 2, 5, 40, 3000, 7, 1, 300, 3)
    ]
    texts.append(" ".join(["a ball at sea"] * 5000))
    records = [{"id": str(number), "text": text, "source": "test"} for number, text in enumerate(texts)]
    shard = write_records(folder, "data/part-00000.parquet", "text", records)
    write_manifest(folder, "text", [shard])
    return folder


GLOBAL = 8
SPREADS = [(workers, micro) for workers in (1, 2, 4, 8) for micro in (1, 2, 4, 8) if workers * micro <= GLOBAL]


@pytest.fixture(scope="module")
def reading(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[TrainRun, Any]]:
    """Stage 1 on documents of all lengths, by documents of a row: its run, and its stage without dropout."""
    text = write_documents(tmp_path_factory.mktemp("text"))

    @cache
    def build(together: int) -> tuple[TrainRun, Any]:
        settings = [f"train.global_batch={GLOBAL}", "train.steps=50", f"data.text={text}", "data.max_seq_len=64"]
        experiment = tiny("pretrain", output, *settings, f"templates.pretrain.documents_per_row={together}")
        job = TrainRun(pretrain.recipe(experiment), experiment, "key", Run("", ""))
        stage: Any = job.build_stage()
        return job, stage.eval()

    return build


@settings(max_examples=12, deadline=None)
@given(spread=st.sampled_from(SPREADS), step=st.integers(0, 40), together=st.sampled_from([1, 3]))
def test_rows_and_loss_of_a_batch_do_not_depend_on_workers_and_micro_batches(
    spread: tuple[int, int], step: int, together: int, reading: Callable[[int], tuple[TrainRun, Any]]
) -> None:
    job, stage = reading(together)

    def rows_and_loss(workers: int, micro: int) -> tuple[list[list[tuple[int, int]]], float]:
        rows: list[list[tuple[int, int]]] = []
        losses, weights = [], []
        for rank in range(workers):
            batches = micro_batches(job, step, micro, rank, workers)
            for _ in range(GLOBAL // workers // micro):
                batch = next(batches).batch
                assert len(batch["input_ids"]) == micro
                assert batch["input_ids"].shape[1] <= 64
                for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
                    pads = job.recipe.initial.processor().pad_id
                    rows.append([pair for pair in zip(ids, labels, strict=True) if pair != (pads, -100)])
                weights.append(float(batch["weight"]))
                with torch.no_grad():
                    losses.append(float(stage(batch).loss))
        total = sum(loss * weight for loss, weight in zip(losses, weights, strict=True))
        return rows, total / sum(weights)

    whole, loss = rows_and_loss(1, GLOBAL)
    assert len(whole) == GLOBAL
    rows, same = rows_and_loss(*spread)
    assert rows == whole
    assert same == pytest.approx(loss, abs=1e-5)


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
        ("align", ["parent=/nowhere"], r"^parent: there is no model '/nowhere'"),
        ("instruct", ["parent=new", "data.folder=/nowhere"], r"^data.composition: /nowhere/composition does not exist"),
        ("align", ["parent=new", "data.captions=/nowhere"], r"^data.captions: /nowhere does not exist"),
        ("align", ["parent=new", "data.weights.edit=1"], r"^data.weights.edit: align has no such kind"),
        (
            "pretrain",
            ["model.init=huge"],
            r"^model.init: 'huge' is none of tiny, paper, toyworld, and there is no model",
        ),
        ("instruct", ["parent=new", "decoder=/nowhere"], r"decoder .* is neither a folder nor a reachable Hub id"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(stage: str, settings: list[str], message: str, output: Path) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        JOBS[stage].recipe(tiny(stage, output, *settings)).fingerprint()


def test_an_unfinished_dataset_is_no_dataset(output: Path, tmp_path: Path) -> None:
    (tmp_path / "composition" / "data").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"data.composition: .* is unfinished \(no manifest.json\)"):
        instruct.recipe(tiny("instruct", output, "parent=new", f"data.folder={tmp_path}"))


def test_what_makes_two_runs_the_same(output: Path, tmp_path: Path) -> None:
    def key(*settings: str) -> str:
        experiment = tiny("align", output, "parent=new", *settings)
        fingerprint = align.recipe(experiment).fingerprint()
        json.dumps(fingerprint)
        return run_key("align", experiment, fingerprint)

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
    model, processor = first.initial.load()
    folder = save_export(model, processor, tmp_path / "pretrain" / "run" / "export")
    point(tmp_path / "pretrain" / "export", folder)
    child = align.recipe(tiny("align", tmp_path, f"data.folder={output}/build_dataset"))
    assert child.initial.parent == folder
    started, _ = child.initial.load()
    assert started.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, started.state_dict()[name]), name
    before = child.fingerprint()["parent"]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_export(model, processor, folder)
    assert child.fingerprint()["parent"] != before


def test_stage_2_goes_on_with_its_parents_decoder(output: Path, tmp_path: Path) -> None:
    """From an export of stage 2, and from one in half precision, as the released files are."""
    first = align.recipe(tiny("align", output, "parent=new"))
    torch.manual_seed(3)
    stage = first.build_stage()
    facts = {"stage": "align", "steps": 1, "samples": 8, "seconds": 1.0, "averaged_weights": False, "mlflow_run": ""}
    first.save(stage, tmp_path / "first", facts)
    settings = (f"data.folder={output}/build_dataset", f"parent={tmp_path / 'first'}")
    child = align.recipe(tiny("align", tmp_path, *settings))
    before = child.fingerprint()["aligner_decoder"]
    assert "aligner_decoder" not in first.fingerprint()
    assert (
        "aligner_decoder" not in instruct.recipe(tiny("instruct", output, f"parent={tmp_path / 'first'}")).fingerprint()
    )
    torch.manual_seed(4)
    started = child.build_stage()
    for (name, one), (_, other) in zip(stage.trainable(), started.trainable(), strict=True):
        assert torch.equal(one, other), name

    stage.half()
    first.save(stage, tmp_path / "first", facts)
    assert child.fingerprint()["aligner_decoder"] != before
    from_half = child.build_stage()
    assert {parameter.dtype for parameter in from_half.parameters()} == {torch.float32}
    assert from_half.decoder.training


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_sample_images_take_the_stages_own_decoder(stage: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One U-Net is in memory at any time, and the sheet is the one that a decoder of its own gives."""
    alive: WeakSet[UNet2DConditionModel] = WeakSet()
    most = [0]
    make = UNet2DConditionModel.__init__

    @wraps(make)
    def counted(self: UNet2DConditionModel, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        gc.collect()
        alive.add(self)
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(UNet2DConditionModel, "__init__", counted)
    recipe = JOBS[stage].recipe(tiny(stage, output, "parent=new", "data.weights={}"))
    module: Any = recipe.build_stage()
    ((_, sheet),) = recipe.sample_images(module)
    assert most[0] == 1
    if stage == "instruct":
        own = next(iter(alive))
        monkeypatch.setattr(instruct, "sample_sheet", lambda *given: sample_sheet(*given[:-1]))
        ((_, other),) = recipe.sample_images(module)
        assert module.decoder.unet is own
        assert sheet.tobytes() == other.tobytes()
        assert not module.decoder.unet.training


def test_a_new_models_aligner_fits_its_decoder(output: Path) -> None:
    recipe = pretrain.recipe(tiny("pretrain", output))
    config = recipe.build_stage().model.config
    assert (config.aligner_config.d_model, config.aligner_config.num_queries) == (128, 24)
    assert config.text_config.vocab_size == recipe.initial.processor().vocab_size


def test_a_model_is_exported_by_its_name(output: Path, tmp_path: Path) -> None:
    folder = export.run(tiny("export", output, "source=toyworld:instruct", f"dest={tmp_path / 'pipeline'}"))
    assert folder == tmp_path / "pipeline"
    assert (folder / "model_index.json").is_file()
    with pytest.raises(CheckpointError, match="there is no model 'toyworld:instrct'"):
        export.run(tiny("export", output, "source=toyworld:instrct"))


def test_export_refuses_what_is_no_run(output: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is not a run folder"):
        export.run(tiny("export", output, f"source={tmp_path}"))
    with pytest.raises(ConfigError, match="no finished stage under"):
        export.run(tiny("export", tmp_path))
