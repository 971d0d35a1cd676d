"""Questions about the toy world have one right answer, and none about a held-out subject is asked in training."""

import numpy as np

from kosmosg.toyworld.questions import questions, sample_question
from kosmosg.toyworld.scene import Scene, SceneEntity, sample_scene
from kosmosg.toyworld.source import QuestionReader


def scene(*kinds: str) -> Scene:
    layout = {1: "alone", 2: "beside", 3: "pyramid"}[len(kinds)]
    entities = tuple(SceneEntity(kind, 45.0 * place, "split", 16, 16, 6) for place, kind in enumerate(kinds))
    return Scene("sea", True, layout, entities)


def test_answers_are_those_of_the_scene() -> None:
    found = {question.text: question.answer for question in questions(scene("ball", "cat"))}
    assert found == {
        "where is it?": "at sea",
        "is it night?": "yes",
        "how many?": "two",
        "what color is the ball?": "red",
        "which pattern has the ball?": "split",
        "what color is the cat?": "orange",
        "which pattern has the cat?": "split",
    }


def test_twins_are_not_asked_about() -> None:
    """Two balls of different colour: "the ball" would have two answers."""
    assert {question.about for question in questions(scene("ball", "ball"))} == {"place", "night", "count"}
    asked = {question.text for question in questions(scene("ball", "cat", "ball")) if question.about == "color"}
    assert asked == {"what color is the cat?"}


def test_every_kind_of_question_is_asked() -> None:
    rng = np.random.default_rng(0)
    asked = [sample_question(rng, sample_scene(rng)).about for _ in range(400)]
    assert {about: asked.count(about) > 5 for about in set(asked)} == dict.fromkeys(
        ("place", "night", "count", "color", "pattern", "kind"), True
    )


def test_the_reader_gives_captioned_pictures_that_ask_and_answer() -> None:
    reader = QuestionReader(30, seed=3, shard_rows=20)
    first, second = reader.items()
    rows = [row.record for row in reader.read([first, second])]
    assert len({row["id"] for row in rows}) == 30
    for row in rows:
        question, _, answer = row["text"].removeprefix("Question: ").partition(" Answer: ")
        assert question.endswith("?")
        assert answer
    assert [row.record for row in reader.read([second])] == rows[20:]
