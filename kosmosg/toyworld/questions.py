"""Questions about the toy world, each with a single right answer in the toy world's vocabulary.

So what stage 1 learns about images can be measured by exact match (`kosmosg.toyworld.reading`).
"""

from typing import NamedTuple

import numpy as np

from kosmosg.toyworld.scene import PLACES, Scene

COUNTS = {1: "one", 2: "two", 3: "three"}


class Question(NamedTuple):
    """`about` names the kind of question, for counting."""

    about: str
    text: str
    answer: str

    @property
    def asked(self) -> str:
        """The text between the image and the answer."""
        return f"Question: {self.text} Answer:"


def questions(scene: Scene) -> list[Question]:
    """Every question with a single right answer: a subject is named by its shape if no other subject has it."""
    found = [
        Question("place", "where is it?", PLACES[scene.ground]),
        Question("night", "is it night?", "yes" if scene.night else "no"),
        Question("count", "how many?", COUNTS[len(scene.entities)]),
    ]
    kinds = [entity.kind for entity in scene.entities]
    for entity in scene.entities:
        if kinds.count(entity.kind) == 1:
            found.append(Question("color", f"what color is the {entity.kind}?", entity.color))
            found.append(Question("pattern", f"which pattern has the {entity.kind}?", entity.pattern))
    if len(kinds) == 1:
        found.append(Question("kind", "what is in the picture?", f"a {kinds[0]}"))
    return found


def sample_question(rng: np.random.Generator, scene: Scene) -> Question:
    """One of them: first the kind, then the question, so that all kinds are as frequent as possible."""
    groups: dict[str, list[Question]] = {}
    for question in questions(scene):
        groups.setdefault(question.about, []).append(question)
    group = list(groups.values())[int(rng.integers(len(groups)))]
    return group[int(rng.integers(len(group)))]
