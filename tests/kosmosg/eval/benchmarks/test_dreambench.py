"""DreamBench's lists are the official ones, and what Kosmos-G is asked is what its authors asked."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.errors import ConfigError, DataError
from kosmosg.eval.benchmarks.dreambench_data import (
    OFFICIAL,
    SUBJECTS,
    ask,
    digest_cases,
    make_cases,
    parse_prompts,
    read_prompts,
    real_photos,
)
from kosmosg.eval.metrics.similarity import by_subject, image_scores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All subjects with two photos each, of which one is kept."""
    for number, subject in enumerate(SUBJECTS):
        (tmp_path / subject.name).mkdir()
        for name in (subject.kept, "09"):
            Image.new("RGB", (8, 8), (number, int(name), 0)).save(tmp_path / subject.name / f"{name}.jpg")
    return tmp_path


def test_a_folders_own_list_is_read(folder: Path) -> None:
    words = "\n".join(f"{subject.name},{subject.kind}" for subject in SUBJECTS)
    line = "'a {0} {1} on Mars'.format(unique_token, class_token),"
    text = f"Classes\n{words}\nObject Prompts\n{line}\nLive Subject Prompts\n{line}\n"
    (folder / "prompts_and_classes.txt").write_text(text)
    assert read_prompts(folder).objects == ("a {} on Mars",)
    assert make_cases(folder)[0].text == "<i> on Mars"


def test_counts_are_the_published_ones() -> None:
    assert len(SUBJECTS) == 30
    assert sum(subject.live for subject in SUBJECTS) == 9
    assert len(OFFICIAL.objects) == len(OFFICIAL.live) == 25
    assert len({subject.kind for subject in SUBJECTS}) == 15


def test_built_in_prompts_are_those_of_the_official_file(shared_data: Path) -> None:
    path = shared_data / "data" / "dreambench" / "prompts_and_classes.txt"
    assert parse_prompts(path.read_text(), path) == OFFICIAL


@pytest.mark.parametrize(
    ("sentence", "asked"),
    [
        ("a {} in the jungle", "<i> in the jungle"),
        ("a red {}", "<i>, red"),
        ("a purple {}", "<i>, purple"),
        ("a shiny {}", "<i>, shiny"),
        ("a wet {}", "<i>, wet"),
        ("a cube shaped {}", "<i>, cube shaped"),
        ("a {} with the Eiffel Tower in the background", "<i> with the Eiffel Tower in the background"),
    ],
)
def test_questions_are_those_of_kosmos_g(sentence: str, asked: str) -> None:
    """KOSMOSG_OBJECT_PROMPTS of eval/dreambench_prompts.py, with drop_object."""
    assert ask(sentence) == asked
    assert ask(sentence, "cat") == asked.replace("<i>", "cat <i>")


def test_every_sentence_has_one_place_for_the_photo() -> None:
    for sentence in OFFICIAL.objects + OFFICIAL.live:
        assert ask(sentence).count("<i>") == 1
        assert not ask(sentence).startswith("a ")


def test_cases_go_subject_by_subject(folder: Path) -> None:
    cases = make_cases(folder)
    assert len(cases) == 750
    assert [case.subject.name for case in cases[::25]] == [subject.name for subject in SUBJECTS]
    plush = next(case for case in cases if case.subject.name == "wolf_plushie")
    assert (plush.sentence, plush.text) == ("a stuffed animal in the jungle", "<i> in the jungle")
    assert plush.photo == folder / "wolf_plushie" / "04.jpg"
    assert any("santa hat" in case.sentence for case in cases if case.subject.live)
    assert not any("santa hat" in case.sentence for case in cases if not case.subject.live)
    assert len(make_cases(folder, count=2, subjects=["cat", "can"])) == 4


def test_official_layout_with_a_dataset_folder_is_found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = tmp_path_factory.mktemp("dreambooth")
    shutil.copytree(folder, whole / "dataset")
    assert make_cases(whole, count=1)[0].photo == whole / "dataset" / "backpack" / "02.jpg"


def test_real_photos_are_all_of_the_subject(folder: Path) -> None:
    cat = next(subject for subject in SUBJECTS if subject.name == "cat")
    assert [path.name for path in real_photos(folder, cat)] == ["04.jpg", "09.jpg"]


def test_digest_knows_sentences_photos_and_which_is_the_input(folder: Path) -> None:
    cases = make_cases(folder, count=1)
    inputs = {case.subject.name: [case.photo] for case in cases}
    first = digest_cases(cases, inputs)
    everything = {subject.name: real_photos(folder, subject) for subject in SUBJECTS}
    assert len({first, digest_cases(cases[1:], inputs), digest_cases(cases, everything)}) == 3
    Image.new("RGB", (8, 8), "white").save(folder / "cat" / "04.jpg")
    assert digest_cases(cases, inputs) != first


class TestMistakes:
    def test_a_wrong_folder_tells_what_it_holds(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there is no folder"):
            make_cases(tmp_path / "none")
        (tmp_path / "pictures").mkdir()
        with pytest.raises(DataError, match=r"holds no subject of DreamBench \(found: pictures\)"):
            make_cases(tmp_path)

    def test_a_missing_photo_is_named(self, folder: Path) -> None:
        (folder / "vase" / "02.jpg").unlink()
        with pytest.raises(DataError, match=r"vase has no 02\.jpg"):
            make_cases(folder)
        shutil.rmtree(folder / "teapot")
        with pytest.raises(DataError, match=r"teapot does not exist, so there is no 04\.jpg"):
            make_cases(folder, subjects=["teapot"])

    def test_an_unknown_subject_is_told(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="DreamBench has no 'horse'; its subjects are backpack, "):
            make_cases(folder, subjects=["horse"])

    def test_a_damaged_list_is_told(self) -> None:
        with pytest.raises(DataError, match="has not the parts"):
            parse_prompts("nothing")
        text = "cat,lion\nObject Prompts\n'a {0} {1}'.format(x)\nLive Subject Prompts\n'a {0} {1}'.format(x)\n"
        with pytest.raises(DataError, match="the word for backpack is None"):
            parse_prompts(text)


def test_scores_are_means_over_the_photos_of_the_subject() -> None:
    rng = np.random.default_rng(0)
    drawn = {"dino": rng.normal(size=(3, 5)), "clip": rng.normal(size=(3, 4))}
    real = {"dino": rng.normal(size=(2, 5)), "clip": rng.normal(size=(2, 4))}
    sentences = rng.normal(size=(2, 4))

    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    scores = image_scores(drawn, real, sentences, photos_of=[[0], [0, 1], [1]], sentence_of=[1, 0, 0])
    both = (cos(drawn["dino"][1], real["dino"][0]) + cos(drawn["dino"][1], real["dino"][1])) / 2
    assert scores["dino"] == pytest.approx([cos(drawn["dino"][0], real["dino"][0]), both, scores["dino"][2]])
    assert scores["clip_i"][2] == pytest.approx(cos(drawn["clip"][2], real["clip"][1]))
    assert scores["clip_t"][0] == pytest.approx(cos(drawn["clip"][0], sentences[1]))
    means = by_subject(scores, ["dog", "cat", "dog"])
    assert list(means) == ["dog", "cat"]
    assert means["dog"]["clip_t"] == pytest.approx((scores["clip_t"][0] + scores["clip_t"][2]) / 2)
