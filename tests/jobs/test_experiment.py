"""Every preset is a valid run of every job, and every mistake is one sentence with exit code 2."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from jobs.demo import Road, walk
from jobs.experiment import PRESETS, Experiment, from_arguments, load, refuse_others, usage
from kosmosg.errors import ConfigError
from kosmosg.hub import resolve_model
from kosmosg_platform.config import RENAMED, describe, to_yaml
from kosmosg_platform.tracking import Run
from kosmosg_platform.training import engine
from kosmosg_platform.training.lr_schedule import batch_plan, learning_rate

STAGES = ("pretrain", "align", "instruct")
NAMES = ("tiny", "minutes", "toyworld", "gpu", "paper")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("preset", NAMES)
def test_every_preset_can_run_every_stage(preset: str, stage: str) -> None:
    experiment = load(stage, preset)
    micro, passes = batch_plan(experiment.train, experiment.scale.workers)
    assert micro * passes * experiment.scale.workers == experiment.train.global_batch
    engine.check(experiment.engine, on_gpu=experiment.scale.use_gpu)
    rates = [learning_rate(experiment.train, step) for step in range(0, experiment.train.steps, 97)]
    assert 0 < max(rates) <= experiment.train.lr


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_setting_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    """On the command line, in a preset and in a saved experiment.yaml; the new name is one that exists."""
    value: Any = {} if old in ("world", "train.rates") else 1
    new = RENAMED[old]
    told = rf"^{re.escape(old)}: this setting is (now called {re.escape(new)}|gone)"
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


def test_help_names_every_section() -> None:
    text = usage("align", "What it does.")
    for key in (
        "train.steps",
        "engine.zero_stage",
        "scale.workers",
        "instruct.null_drop",
        "templates.instruct.drop_scope",
    ):
        assert f"  {key} = " in text
    assert "What it does." in text
    assert "example: kosmosg run align tiny" in text


@pytest.mark.parametrize(
    ("job", "words", "sentence"),
    [
        ("align", ["tiny", "train.stps=3"], "kosmosg align: train.stps: no such setting; did you mean train.steps?"),
        (
            "ablation",
            ["scale.workers=8"],
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


@pytest.mark.parametrize("job", ["demo", "ablation"])
def test_the_example_of_a_job_of_jobs_is_not_refused(job: str) -> None:
    own = ("output", "tracking", job)
    example = next(line for line in usage(job, "", own).splitlines() if line.startswith("example: "))
    refuse_others(job, own, example.split()[4:], ())
    with pytest.raises(ConfigError, match=r"train\.seed"):
        refuse_others(job, own, ["train.seed=1"], ())


def test_a_step_of_the_demo_is_done_again_when_its_preset_says_something_else(tmp_path: Path) -> None:
    preset, done = tmp_path / "mine.yaml", []

    def step(road: Road) -> dict[str, Any]:
        done.append(road.experiment.demo.preset)
        return {}

    def walk_with(steps: int) -> None:
        preset.write_text(yaml.safe_dump({"train": {"steps": steps}}))
        experiment = load("demo", "tiny", [f"demo.preset={preset}"])
        walk(Road(experiment, tmp_path, "", run=cast(Run, None)), "pretrain", step)

    walk_with(2)
    walk_with(2)
    assert len(done) == 1
    walk_with(3)
    assert len(done) == 2
