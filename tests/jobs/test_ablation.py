"""The ablation study: a page that says what was reached and what was not, and the job that makes it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from jobs.ablation.job import page_path, run
from jobs.ablation.page import AblationResults, AblationRow, ablation_page, comparison, thresholds
from jobs.ablation.variants import ABLATIONS, chosen
from jobs.experiment import AblationConfig, load
from kosmosg.errors import ConfigError
from kosmosg.eval.statistics import Measured

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"shape": 0.95, "pattern": 0.9, "hue": 6.0, "background": 1.0, "whole": 0.9, "image": 0.8}
BLIND = {"shape": 0.2, "pattern": 0.2, "hue": 92.0, "background": 0.9, "whole": 0.0, "image": 0.0}


def figures(values: Mapping[str, float], width: float = 0.02) -> dict[str, Measured]:
    return {name: Measured(value, value - width, value + width, (value,)) for name, value in values.items()}


def rows(name: str, values: Mapping[str, float], width: float = 0.02) -> list[AblationRow]:
    return [AblationRow(name, of, 10, figures(values, width)) for of in ("one", "two", "three")]


def found(stage_3: Mapping[str, float] = GOOD, **ablations: Mapping[str, float]) -> AblationResults:
    sheet = Image.new("RGB", (8, 8))
    return AblationResults(
        settings=AblationConfig(),
        rows=[
            *rows("stage 3", stage_3),
            *rows("stage 2 only", BLIND),
            *rows("text only", BLIND),
            *rows("perfect words, stage 3", GOOD),
            *rows("perfect words, stage 2", GOOD),
        ],
        edits=[
            AblationRow("all", "one", 10, figures({"shape": 0.5, "changed": 0.96, "identity": 0.4, "background": 0.9}))
        ],
        ablations=[row for name, values in ablations.items() for row in rows(name.replace("_", " "), values)],
        guidances={1.5: 0.4, 3.0: 0.6},
        guidance=3.0,
        reading={"stage 1": {"caption": 0.9, "question": 0.8}, "stage 3": {"caption": 0.1, "question": 0.0}},
        sheets={"main": sheet, "edits": sheet, "ablations": sheet},
        losses={"recipe": [(0.0, 1.0), (1.0, 0.5)]},
    )


def test_bars_are_judged_by_their_worst_set() -> None:
    reached = {bar.claim: bar.reached for bar in thresholds(found())}
    assert [claim for claim, yes in reached.items() if not yes] == ["edits: shape is as it should be"]
    worse = {bar.claim: bar.reached for bar in thresholds(found({**GOOD, "pattern": 0.84, "hue": 11.5}))}
    assert not worse["stage 3: pattern"]
    assert not worse["stage 3: median hue error, degrees"]
    assert worse["stage 3: background"]


def test_a_bar_that_was_missed_stays_on_the_page(tmp_path: Path) -> None:
    page = ablation_page(found(recipe=GOOD, linear=GOOD, no_stage_2=BLIND)).write_markdown(tmp_path / "results.md")
    text = page.read_text()
    assert "thresholds reached: **12 of 13**" in text
    assert "| edits: shape is as it should be | at least 0.8 | 0.500 | no |" in text
    assert "- linear (no stage 2, and one projection" in text
    assert ", compared with no stage 2: better in shape, pattern, hue error, background, whole subject" in text
    assert "compared with recipe: worse in shape, pattern, hue error, background, whole subject" in text
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / name).is_file(), name


def test_intervals_decide_what_can_be_told_apart() -> None:
    ablations = [
        *rows("recipe", GOOD),
        *rows("linear", {**GOOD, "hue": 6.05, "shape": 0.91}, width=0.03),
        *rows("mlp", {**GOOD, "hue": 4.0, "shape": 0.8}),
    ]
    linear, mlp = (line.split(", compared with recipe: ")[1] for line in comparison(ablations))
    # Without the row that they differ from in one thing, the recipe stands for it.
    assert linear == "no significant difference in shape, pattern, hue error, background, whole subject"
    assert mlp == "worse in shape; better in hue error; no significant difference in pattern, background, whole subject"


def test_variants_by_name() -> None:
    assert chosen(()) == list(ABLATIONS)
    assert chosen(("none",)) == []
    with pytest.raises(ConfigError, match="there is no 'magic'; choose from no stage 2, linear"):
        chosen(("linear", "magic"))


@pytest.mark.parametrize(
    "other",
    ["ablation.start=nothing", "ablation.steps=5", "ablation.settings=[train.lr=1.0e-4]", "ablation.second_part=[]"],
)
def test_a_finished_model_of_another_recipe_is_no_seed(other: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give ablation.finished=\[\] as well"):
        run(load("ablation", "toyworld", [f"output={tmp_path}", other]))


@pytest.mark.parametrize("variant", ABLATIONS, ids=lambda variant: variant.name)
def test_every_variant_can_be_trained_alone(variant) -> None:
    """Its settings are settings of the job, and change something."""
    assert load("instruct", "toyworld", variant.settings) != load("instruct", "toyworld") or variant.parent != "align"


@pytest.mark.parametrize("mine", ["results.md", "results/main.png"])
def test_a_page_that_no_ablation_wrote_is_not_overwritten(tmp_path: Path, mine: str) -> None:
    file = tmp_path / "docs" / mine
    file.parent.mkdir(parents=True)
    file.write_text("# Results of my own")
    with pytest.raises(ConfigError, match="was not written by `kosmosg run ablation`"):
        run(load("ablation", "toyworld", [f"output={tmp_path / 'runs'}", f"dest={tmp_path / 'docs'}"]))
    assert file.read_text() == "# Results of my own"
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]


def test_a_page_of_an_earlier_ablation_is_written_anew(tmp_path: Path) -> None:
    experiment = load("ablation", "toyworld", [f"dest={tmp_path}"])
    written = ablation_page(found(recipe=GOOD, linear=GOOD, no_stage_2=BLIND)).write_markdown(page_path(experiment))
    (tmp_path / "notes.md").write_text("beside it is anything")
    assert page_path(experiment) == written == tmp_path / "results.md"
    assert page_path(load("ablation", "toyworld", [f"dest={ROOT / 'docs'}"])).is_file()  # the page that ships


@pytest.mark.slow
def test_from_trainings_to_a_page_and_nothing_twice(
    ray_cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quick = ["ablation.start=shipped", "ablation.guidances=[3.0]", "ablation.second_part=[train.steps=3]"]
    experiment = load("ablation", "tiny", [f"output={tmp_path}", f"dest={tmp_path / 'page'}", *quick])
    page = run(experiment)
    assert page == tmp_path / "page" / "results.md"
    assert (tmp_path / "ablation" / "report.html").is_file()
    results = json.loads((tmp_path / "ablation" / "results.json").read_text())
    assert {row["row"] for row in results["ablations"]} == {"recipe", "linear"}
    assert results["guidances"].keys() == {"3"}
    assert {"stage 3", "stage 3, first part"} < {row["row"] for row in results["rows"]}
    assert {"all", "all, first part"} < {row["row"] for row in results["edits"]}
    made = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "ablation").rglob("*")
        if path.suffix in (".png", ".safetensors")
    }
    capfd.readouterr()
    run(experiment)
    assert capfd.readouterr().err.count("already finished with these settings") == 4, (
        "the recipe's two parts and two variants"
    )
    assert json.loads((tmp_path / "ablation" / "results.json").read_text()) == results
    assert all(path.stat().st_mtime_ns == written for path, written in made.items())
