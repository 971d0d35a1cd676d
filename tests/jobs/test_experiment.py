"""Every preset is a valid run of every job, and every mistake is one sentence with exit code 2."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from jobs.demo import DemoRun, run_step
from jobs.experiment import PRESETS, Experiment, from_arguments, load
from jobs.settings import JOBS
from jobs.settings_page import PAGE, rendered_page, rendered_settings
from jobs.stored_results import stored_results
from kosmosg.errors import ConfigError
from kosmosg.hub import resolve_model
from kosmosg_platform.cluster import workspace
from kosmosg_platform.config import RENAMED, describe, to_yaml
from kosmosg_platform.run_paths import RunPaths
from kosmosg_platform.tracking import Run
from kosmosg_platform.training import engine_config
from kosmosg_platform.training.lr_schedule import batch_plan, learning_rate

STAGES = ("pretrain", "align", "instruct")
NAMES = ("tiny", "minutes", "toyworld", "gpu", "paper")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", NAMES)
def test_every_preset_can_run_every_stage(preset: str, stage: str) -> None:
    experiment = load(stage, preset)
    micro, passes = batch_plan(experiment.train, experiment.scale.workers)
    assert micro * passes * experiment.scale.workers == experiment.train.global_batch
    engine_config.check(experiment.engine, on_gpu=experiment.scale.use_gpu)
    rates = [learning_rate(experiment.train, step) for step in range(0, experiment.train.steps, 97)]
    assert 0 < max(rates) <= experiment.train.lr


@pytest.mark.parametrize("old", [old for old in RENAMED if not old.startswith(("decoding.", "encoding."))])
def test_an_old_setting_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    """On the command line, in a preset and in a saved experiment.yaml; the new name is one that exists."""
    value: Any = {} if "." not in old or old == "train.rates" else 1
    new = RENAMED[old]
    told = rf"^{re.escape(old)}: this setting is (now called {re.escape(new)}|no longer used)"
    with pytest.raises(ConfigError, match=told):
        load("pretrain", "tiny", [f"{old}={value}"])
    for part in reversed(old.split(".")):
        value = {part: value}
    saved = tmp_path / "experiment.yaml"
    saved.write_text(yaml.safe_dump(value))
    with pytest.raises(ConfigError, match=told):
        load("pretrain", str(saved))
    keys = [path for path, _, _ in describe(Experiment)]
    assert not new or any(f"{key}.".startswith(f"{new}.") or new.startswith(f"{key}.") for key in keys)


@pytest.mark.parametrize("stage", STAGES)
def test_the_settings_that_ship_with_a_model_are_a_preset(stage: str) -> None:
    shipped = resolve_model(f"toyworld:{stage}") / "experiment.yaml"
    experiment = load(stage, str(shipped))
    assert experiment.train.lr_multipliers == ({"model.mllm": 0.1} if stage == "instruct" else {})
    assert experiment.train.max_grad_norm == 1.0


def test_the_paper_preset_holds_the_papers_numbers() -> None:
    """Kosmos-G, appendix A; scripts of the original for what the paper leaves out."""
    stages = {stage: load(stage, "paper") for stage in STAGES}
    assert [stages[s].train.steps for s in STAGES] == [300_000, 300_000, 200_000]
    assert [stages[s].train.lr for s in STAGES] == [2e-4, 1e-3, 1e-3]
    assert [stages[s].train.global_batch for s in STAGES[1:]] == [3584, 1024]
    for experiment in stages.values():
        train = experiment.train
        assert (train.betas, train.eps, train.weight_decay) == ((0.9, 0.98), 1e-6, 0.01)
        assert (train.warmup, train.max_grad_norm, train.schedule) == (375, 2.0, "linear")
        assert experiment.scale.workers == 256
    assert stages["instruct"].data.weights == {"composition": 2, "edit": 2, "t2i": 1}
    assert stages["instruct"].instruct.null_drop == 0.1
    # a batch of stage 1: 1.2M tokens
    tokens = {"text": 700, "caption": 90, "interleaved": 500}
    shares = stages["pretrain"].data.weights
    per_sample = sum(shares[k] * tokens[k] for k in tokens) / sum(shares.values())
    assert per_sample * stages["pretrain"].train.global_batch == pytest.approx(1.2e6, rel=0.02)


def test_a_saved_experiment_is_a_preset(tmp_path: Path) -> None:
    experiment = load("align", "toyworld", ["train.seed=3", "output=/somewhere"])
    saved = tmp_path / "experiment.yaml"
    saved.write_text(to_yaml(experiment))
    assert load("align", str(saved)) == experiment
    assert from_arguments("align", [str(saved), "train.seed=4"]).train.seed == 4


def test_presets_hold_no_key_twice() -> None:
    """PyYAML would silently keep the last one."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice in {keys}"
        return {loader.construct_object(k): loader.construct_object(v, deep=True) for k, v in node.value}

    Strict.add_constructor("tag:yaml.org,2002:map", mapping)
    for path in PRESETS.glob("*.yaml"):
        yaml.load(path.read_text(), Strict)


def test_words_on_the_command_line() -> None:
    assert from_arguments("align", []).model.init == "tiny"
    assert from_arguments("align", ["toyworld", "train.steps=3"]).train.steps == 3
    assert from_arguments("align", ["train.steps=3"]).train.steps == 3
    with pytest.raises(ConfigError, match="give at most one preset"):
        from_arguments("align", ["toyworld", "paper"])
    with pytest.raises(ConfigError, match="--workers: give at most one preset"):
        from_arguments("align", ["--workers"])


@pytest.mark.parametrize("job", JOBS)
def test_help_is_there_in_two_seconds_and_names_what_the_job_reads_alone(job: str) -> None:
    """Before any of the job's own imports; every setting has a description."""
    began = time.process_time()
    command = [sys.executable, "-X", "importtime", "-m", f"jobs.{job}", "tiny", "--help"]
    result = subprocess.run(command, cwd=PRESETS.parents[1], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not re.search(r"\| +(torch|ray|pydantic|transformers)$", result.stderr, flags=re.MULTILINE)
    assert time.process_time() - began < 2
    told = dict(re.findall(r"^  (\S+) = .*\n      (.*)$", result.stdout, flags=re.MULTILINE))
    assert all(told.values()), [key for key, text in told.items() if not text]
    assert ("train.steps" in told) == (job in (*STAGES, "plan", "rehearse"))
    assert ("evaluate.cases" in told) == (job == "evaluate")
    example = next(line for line in result.stdout.splitlines() if line.startswith("example: "))
    if job != "plan":
        from_arguments(job, example.split()[4:])


def test_what_help_and_the_page_of_settings_say_is_fresh() -> None:
    """Written by `make settings`."""
    assert (PRESETS.parent / "settings.json").read_text() == rendered_settings()
    assert PAGE.read_text() == rendered_page()


def test_every_job_says_what_it_reads() -> None:
    assert set(JOBS) == set(workspace.jobs(PRESETS.parents[1]))
    keys = {path.partition(".")[0] for path, _, _ in describe(Experiment)}
    assert {part.partition(".")[0] for job in JOBS.values() for part in job.reads} == keys


def test_without_a_preset_a_job_says_which_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    assert from_arguments("demo", []).demo.preset == "minutes"
    assert "no preset given, using `minutes`" in capsys.readouterr().err


def test_a_mapping_on_the_command_line_replaces_the_presets_and_a_key_changes_one_entry() -> None:
    preset = load("instruct", "toyworld").data.weights
    assert load("instruct", "toyworld", ["data.weights={composition: 1}"]).data.weights == {"composition": 1}
    assert load("instruct", "toyworld", ["data.weights.edit=9"]).data.weights == preset | {"edit": 9}
    both = load("instruct", "toyworld", ["data.weights={composition: 1}", "data.weights.t2i=2"]).data.weights
    assert both == {"composition": 1, "t2i": 2}
    merged = load("instruct", "toyworld", ["train={steps: 3}"]).train
    assert (merged.steps, merged.lr) == (3, load("instruct", "toyworld").train.lr), "a section is no plain mapping"


@pytest.mark.parametrize(
    ("job", "argument", "told"),
    [
        ("align", "evaluate.cases=3", "evaluate.cases: `align` does not read it, .* read by evaluate"),
        (
            "build_dataset",
            "train.steps=3",
            "train.steps: `build_dataset` does not read it, .*pretrain, align",
        ),
        ("instruct", "source=photos", "source: `instruct` does not read it, .*build_dataset"),
        ("pretrain", "templates.instruct.drop_scope=entity", "templates.instruct.drop_scope: `pretrain` does not"),
        ("evaluate", "engine.zero_stage=3", "engine.zero_stage: `evaluate` does not read it"),
    ],
)
def test_a_setting_that_a_job_does_not_read_is_refused(job: str, argument: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        from_arguments(job, ["tiny", argument])


@pytest.mark.parametrize(("old", "new"), [("world", "toyworld")])
def test_an_old_preset_is_refused_with_its_new_name(old: str, new: str) -> None:
    with pytest.raises(ConfigError, match=f"'{old}' is called '{new}' now"):
        load("align", old)


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_shipped_preset_is_planned(preset: str) -> None:
    command = [str(Path(sys.executable).parent / "kosmosg"), "plan", preset]
    result = subprocess.run(command, cwd=PRESETS.parents[1], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert [line.partition(":")[0] for line in result.stdout.splitlines() if "trainable" in line] == list(STAGES)


@pytest.mark.parametrize(
    ("job", "words", "sentence"),
    [
        ("align", ["tiny", "train.stps=3"], "kosmosg align: train.stps: no such setting; did you mean train.steps?"),
        (
            "ablation",
            ["tiny", "scale.workers=8"],
            r"""kosmosg ablation: scale.workers: .*'ablation.settings=\["evaluate.steps=2", .*"scale.workers=8"\]'""",
        ),
        ("demo", ["tiny", "train.seed=5"], r"kosmosg demo: train.seed: `demo` starts other jobs"),
        ("pretrain", ["tiny"], "kosmosg pretrain: data.composition: .* does not exist; run `kosmosg run build_dataset"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(job: str, words: list[str], sentence: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", f"jobs.{job}", *words, f"output={tmp_path}"]
    result = subprocess.run(command, cwd=PRESETS.parents[1], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.match(sentence.replace("?", r"\?"), result.stderr)
    assert result.stdout == ""


def test_a_step_of_the_demo_is_done_again_when_its_preset_says_something_else(tmp_path: Path) -> None:
    preset, done = tmp_path / "mine.yaml", []

    def step(demo: DemoRun) -> dict[str, Any]:
        done.append(demo.experiment.demo.preset)
        return {}

    def run_with(steps: int) -> None:
        preset.write_text(yaml.safe_dump({"train": {"steps": steps}}))
        experiment = load("demo", "tiny", [f"demo.preset={preset}"])
        run_step(DemoRun(experiment, tmp_path, "", run=cast(Run, None), key=""), "pretrain", step)

    run_with(2)
    run_with(2)
    assert len(done) == 1
    run_with(3)
    assert len(done) == 2


@pytest.mark.parametrize(
    ("job", "setting", "path"),
    [
        ("evaluate", "evaluate.data=hdfs://name/coco", "evaluate.data"),
        ("generate", "generate.images=[s3://bucket/one.png]", "generate.images"),
        ("generate", "generate.images=['file:///one.png']", "generate.images"),
    ],
)
def test_a_url_where_a_folder_belongs_is_refused(job: str, setting: str, path: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{path}: .*is a URL, but this setting takes a folder"):
        load(job, "tiny", [setting])


@pytest.mark.parametrize(
    "setting",
    [
        "source=s3://bucket/images",
        "parent=s3://bucket/model",
        "output=a:b/c",
        "output=gs://bucket/runs",
        "dest=hdfs://name/set",
        "data.captions=s3://bucket/captions",
        "data.datasets={questions: 's3://bucket/questions'}",
    ],
)
def test_a_url_is_taken_where_urls_are_read(setting: str) -> None:
    load("build_dataset", "tiny", [setting])


@pytest.mark.parametrize("job", ["demo", "ablation", "toyworld"])
def test_a_job_that_writes_to_disks_only_refuses_a_store(job: str) -> None:
    refused = pytest.raises(ConfigError, match=r"^output: .* not to s3://bucket/runs; give a folder")
    with refused, stored_results(job, load(job, "tiny", ["output=s3://bucket/runs"])):
        pytest.fail("it was let in")


def test_a_run_in_a_store_needs_a_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    experiment = load("pretrain", "tiny", ["output=s3://bucket/runs"])
    with pytest.raises(ConfigError, match=r"^tracking\.uri: .*object store.*http://"):
        experiment.tracking.store(RunPaths(experiment.output).tracking)
