"""Entities from a causal language model (the original used `mosaicml/mpt-7b-instruct`, sampling at temperature 1).

The model reads only the caption. It answers with a list of words, of which those that occur in the caption are used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kosmosg.data.annotators.base import EntitySpans, Rejection, Sample
from kosmosg.data.annotators.nouns import find_spans
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings, load_pretrained

TASK = (
    "Name the things that can be seen in a picture with this description. Take single nouns from the description, "
    "without adjectives, leave out places and backgrounds, and separate them by commas."
)
# Two worked examples: small models follow examples far better than instructions.
EXAMPLES = (
    ("a brown dog runs along the beach with a frisbee", "dog, frisbee"),
    ("two kids in red jackets sitting on a wooden bench in the park", "kids, jackets, bench"),
)


@dataclass(frozen=True)
class LanguageModelSettings(PretrainedSettings):
    """Settings of `language_model`."""

    model: str = "Qwen/Qwen2.5-1.5B-Instruct"
    """Hub id or local folder of a causal language model; its chat template is used where it has one."""
    max_new_tokens: int = 32
    """Length limit of the answer (the original's 10 cut it after three or four things)."""


class LanguageEntityFinder:
    """Asks a causal language model for the objects in a caption; greedy, so that two builds agree.

    Args:
        model: hub id or local folder of a causal language model; its chat template is used where it has one.
        device: torch device; auto is the GPU where there is one.
        dtype: auto is float16 on a GPU, float32 on a CPU.
        max_new_tokens: length limit of the answer (the original's 10 cut it after three or four things).
    """

    fills = "entities"
    settings = LanguageModelSettings
    hint = ""

    def __init__(
        self,
        model: str,
        device: str = "auto",
        dtype: str = "auto",
        max_new_tokens: int = 32,
    ) -> None:
        self.network, self.tokenizer, self.name = load_pretrained(
            AutoModelForCausalLM, AutoTokenizer, model, Loading(device, dtype)
        )
        self.max_new_tokens = max_new_tokens
        self.tokenizer.padding_side = "left"  # the answer must follow the question directly in every row
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def __call__(self, samples: Sequence[Sample]) -> list[EntitySpans | Rejection]:
        answers = self.ask([sample.caption for sample in samples])
        return [self.read(sample.caption, answer) for sample, answer in zip(samples, answers, strict=True)]

    def size(self, sample: Sample) -> int:
        """Tokens of the caption. What is around it in the question is the same for all."""
        return len(self.tokenizer(sample.caption, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def ask(self, captions: Sequence[str]) -> list[str]:
        """The model's answers, unparsed."""
        special = self.tokenizer.chat_template is None  # a chat template writes the special tokens itself
        batch = self.tokenizer(
            [self.question(caption) for caption in captions],
            return_tensors="pt",
            padding=True,
            add_special_tokens=special,
        ).to(self.network.device)
        ids = self.network.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        texts: list[str] = self.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    def question(self, caption: str) -> str:
        """The prompt for one caption."""
        if self.tokenizer.chat_template is None:
            shown = "".join(f"Description: {text}\nThings: {things}\n\n" for text, things in EXAMPLES)
            return f"{TASK}\n\n{shown}Description: {caption}\nThings:"
        turns: list[dict[str, Any]] = [{"role": "system", "content": TASK}]
        for text, things in EXAMPLES:
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": things}]
        turns.append({"role": "user", "content": caption})
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    @staticmethod
    def read(caption: str, answer: str) -> EntitySpans | Rejection:
        """The spans that an answer names. Instruct models tend to ramble after a '#', so the answer is cut there."""
        line = next((line for line in answer.splitlines() if line.strip()), "")
        if "#" in answer:
            return Rejection(
                "bad-answer", f"the language model did not answer with a list but {answer.strip()[:120]!r}"
            )
        tags = [tag.strip(" .\"'") for tag in line.replace(" and ", ",").split(",")]
        found = find_spans(caption, [tag for tag in tags if tag])
        if not found.spans:
            return Rejection("no-entity", f"of the answer {line.strip()[:120]!r} nothing is a thing in {caption!r}")
        return found
