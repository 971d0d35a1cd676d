"""Captions and answers are right or not: what is asked, what counts, and that the model's own words are counted."""

import pytest

from kosmosg import KosmosG, KosmosGConfig, KosmosGProcessor
from kosmosg.toyworld.assets import toyworld_folder
from kosmosg.toyworld.reading import answer, caption_cases, question_cases, reading_scores
from kosmosg.toyworld.scene import COLORS, KINDS, PATTERNS, is_held_out


def test_captions_name_held_out_subjects() -> None:
    for case in caption_cases(40):
        words = case.answer.split()[1:]
        pattern, color, kind = words
        assert (pattern in PATTERNS, color in COLORS, kind in KINDS) == (True, True, True)
        assert is_held_out(kind, color, pattern)


def test_the_same_seed_asks_the_same() -> None:
    assert caption_cases(5, seed=1) == caption_cases(5, seed=1)
    assert [case.prompt for case in question_cases(5, seed=1)] != [case.prompt for case in question_cases(5, seed=2)]


def test_what_counts_as_right() -> None:
    (case,) = caption_cases(1)
    article, rest = case.answer.split(" ", 1)
    assert article == "a"
    for said in (case.answer, f"a large {rest}", f"{case.answer} above a split red ball", f"{case.answer} at sea"):
        assert reading_scores([case], [said]) == {"caption": 1.0}, said
    for said in (case.answer.rsplit(" ", 1)[0], "", "a ball", f"a split red ball above {case.answer}"):
        assert reading_scores([case], [said]) == {"caption": 0.0}, said


def test_questions_are_counted_by_kind_and_together() -> None:
    cases = question_cases(24)
    answers = [case.answer if case.about != "night" else "perhaps" for case in cases]
    marks = reading_scores(cases, answers)
    wrong = sum(case.about == "night" for case in cases)
    assert marks["night"] == 0.0
    assert marks["place"] == 1.0
    assert marks["question"] == pytest.approx(1 - wrong / len(cases))


def test_a_count_that_does_not_fit_is_refused() -> None:
    for answers in ([], ["a red ball", "a red ball"]):
        with pytest.raises(ValueError, match=f"{len(answers)} answers for 1 cases"):
            reading_scores(caption_cases(1), answers)


def test_an_untrained_model_answers_and_is_wrong() -> None:
    processor = KosmosGProcessor.from_sentencepiece(toyworld_folder() / "sentencepiece.bpe.model", 32, 4)
    model = KosmosG(KosmosGConfig.tiny(processor.vocab_size)).eval()
    cases = caption_cases(3) + question_cases(3)
    said = answer(model.mllm, processor, cases, batch=4)
    assert len(said) == 6
    assert reading_scores(cases, said)["caption"] == 0.0
