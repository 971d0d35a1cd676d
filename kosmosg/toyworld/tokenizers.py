"""The two tokenizers of the toy world, built from its grammar.

CLIP's is a real byte-pair `transformers.CLIPTokenizer` in which every word of the grammar became one token; the
language model's is a real sentencepiece model with all bytes as a fallback, so any text can be given to either.
"""

import io
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import sentencepiece
from transformers import CLIPTokenizer

from kosmosg.toyworld.scene import vocabulary

TEXT_LENGTH = 24  # CLIP tokens, start and end included; the longest caption takes 21
_START, _END = "<|startoftext|>", "<|endoftext|>"
_SPM_PIECES = 640
# Words of prompts that are not captions: questions, templates of the stages, ways of asking for an image.
_PROMPTS = (
    "what is in the picture? what color is the ball? which pattern has the cat? where is it? how many?",
    "an image of, a picture of, a photo of. in the style of, with, without, next to, and then, day, night, the same",
    "Question: Answer: yes no one two three left right top bottom above below. It is a small, large, medium sprite.",
)


def clip_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word of the grammar and single letters for everything else."""
    letters = sorted(string.printable.strip())
    merges = _merges(Counter(word for fragment in vocabulary() for word in fragment.split()))
    symbols = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocab = {symbol: index for index, symbol in enumerate(dict.fromkeys([*symbols, _START, _END]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def train_sentencepiece(path: Path, pieces: int = _SPM_PIECES) -> None:
    """Write the sentencepiece model of the toy world's language model to `path`."""
    buffer = io.BytesIO()
    corpus = [*vocabulary(), *_PROMPTS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=pieces,
        character_coverage=1.0,
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(buffer.getvalue())


def _merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding to the end: the commonest pair first, ties by spelling, until every word is one symbol.

    The trainer of `tokenizers` breaks ties differently from run to run, and token ids are part of the trained weights.
    """
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in spelled.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in spelled.values():
            at = 0
            while at < len(symbols) - 1:
                if (symbols[at], symbols[at + 1]) == best:
                    symbols[at : at + 2] = ["".join(best)]
                at += 1
