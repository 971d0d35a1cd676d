"""Fixtures for the whole test tree."""

import os
from pathlib import Path

import pytest
import sentencepiece

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data, which is not part of the repository: `$KOSMOSG_SHARED`, or `shared` beside the
    checkout. A test that asks for it is skipped where the folder is absent."""
    folder = Path(os.environ.get("KOSMOSG_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"real test data is absent: no folder {folder} (set KOSMOSG_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of 120 pieces with the specials where the released one has them, trained on the spot."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    nouns = ["cat", "dog", "ball", "tree", "fish", "house", "gem"]
    places = ["the snow", "the grass", "the sand", "the sea", "the style of a painting", "a red jacket"]
    lines = [f"a {noun} and a {other} in {place}." for noun in nouns for other in nouns for place in places]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tiny"),
        vocab_size=120,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "tiny.model"
