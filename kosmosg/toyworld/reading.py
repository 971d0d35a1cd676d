"""Measures what stage 1 has learned: exact match of captions and answers from `generate()`.

    cases = caption_cases(192) + question_cases(192)
    reading_scores(cases, answer(model.mllm, processor, cases))  # {"caption": 0.9, "question": 0.8, "color": ...}

All subjects are held out: their combination of shape, colour word and pattern was in no training image, but each
single word was.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from kosmosg.eval.metrics.exact_match import exact_match
from kosmosg.model.mllm import KosmosGForConditionalGeneration
from kosmosg.processor import KosmosGProcessor
from kosmosg.prompt import Prompt
from kosmosg.toyworld.benchmark import another_view
from kosmosg.toyworld.questions import sample_question
from kosmosg.toyworld.scene import KINDS, SIZES, CaptionWords, describe, render, sample_entity, sample_scene

_LONGEST = 12  # tokens of an answer; the longest, "in the snow" or "a spotted orange house", has half as many


class ReadingCase(NamedTuple):
    """A prompt and its right answer; `about` is the category in which it counts."""

    about: str
    prompt: Prompt
    answer: str


def caption_cases(count: int, seed: int = 0, held_out: bool = True) -> list[ReadingCase]:
    """Images of one subject, cut out on white, to be called "a striped red ball": shape, colour word and pattern."""
    rng = np.random.default_rng([seed, 0, int(held_out)])
    cases = []
    for _ in range(count):
        entity = sample_entity(rng, held_out, 16, 16, 8)
        image = Image.fromarray(another_view(rng, entity, background=False))
        cases.append(ReadingCase("caption", Prompt("<i>", images=[image]), describe(entity, CaptionWords(size=False))))
    return cases


def question_cases(count: int, seed: int = 0, held_out: bool = True) -> list[ReadingCase]:
    """Whole images of one to three subjects, with a question of every kind (`kosmosg.toyworld.questions`)."""
    rng = np.random.default_rng([seed, 1, int(held_out)])
    scenes = [sample_scene(rng, held_out) for _ in range(count)]
    cases = []
    for scene, pixels in zip(scenes, render(scenes), strict=True):
        question = sample_question(rng, scene)
        prompt = Prompt(f"<i> {question.asked}", images=[Image.fromarray(pixels)])
        cases.append(ReadingCase(question.about, prompt, question.answer))
    return cases


@torch.inference_mode()
def answer(
    model: KosmosGForConditionalGeneration, processor: KosmosGProcessor, cases: Sequence[ReadingCase], batch: int = 32
) -> list[str]:
    """The model's continuation of each prompt, by greedy decoding."""
    words: list[str] = []
    for first in range(0, len(cases), batch):
        prompts = [case.prompt for case in cases[first : first + batch]]
        inputs = processor(prompts, padding_side="left", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=_LONGEST, do_sample=False)
        words += processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :])
    return words


def reading_scores(cases: Sequence[ReadingCase], answers: Sequence[str]) -> dict[str, float]:
    """Share of right answers for all captions, for all questions, and for each kind of question.

    A caption counts up to its subject's shape and without size words, which a cut-out cannot show; the model may go on
    about a scene behind it. An answer counts as it stands, up to the end of its line. Raises ValueError when there is
    not one answer for each case.
    """
    if len(cases) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(cases)} cases; give one for each")
    pairs = zip(cases, answers, strict=True)
    return exact_match(
        [_subject(said) if case.about == "caption" else said.strip() for case, said in pairs],
        [case.answer for case in cases],
        [(case.about,) if case.about == "caption" else (case.about, "question") for case in cases],
    )


def _subject(said: str) -> str:
    words = [word for word in said.split() if word not in set(SIZES.values())]
    end = next((place for place, word in enumerate(words) if word in KINDS), len(words))
    phrase = " ".join(words[: end + 1])
    # "a large orange ball" loses its size word here, and with it the reason for "a" instead of "an".
    article, _, rest = phrase.partition(" ")
    return f"{'an' if rest[:1] in 'aeio' and rest else 'a'} {rest}" if article in ("a", "an") else phrase
