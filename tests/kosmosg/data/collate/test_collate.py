"""Batches: right shapes and labels, and every sample the same wherever it is built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPTokenizer

from kosmosg.data.collate.align import AlignCollate
from kosmosg.data.collate.base import fit
from kosmosg.data.collate.instruct import InstructCollate, target_pixels
from kosmosg.data.collate.pretrain import PretrainCollate
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.templates.pretrain import IGNORED, PretrainTemplates
from kosmosg.errors import ConfigError, DataError
from kosmosg.processor import KosmosGProcessor

Records = list[dict[str, Any]]
MakeDraw = Callable[..., Any]


def captions(words: list[str]) -> Records:
    return [{"id": str(n), "text": text, "image": None} for n, text in enumerate(words)]


def test_pretrain_rows_predict_the_next_token(
    processor: KosmosGProcessor, compositions: Records, place: MakeDraw
) -> None:
    collate = PretrainCollate(processor, length=60, templates=PretrainTemplates(whole_image=0.0))
    text = {"id": "t", "text": "a cat.\na dog in the snow."}
    samples = [
        (place("caption", 1), compositions[0]),
        (place("text", 2), text),
        (place("interleaved", 3), compositions[1]),
        (place("text", 4), text),
    ]
    batch = collate(samples)
    ids, labels, slots = batch["input_ids"], batch["labels"], batch["image_embeds_position_mask"]
    assert ids.shape == labels.shape == slots.shape
    assert len(ids) == 4  # one row for each sample
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert slots.sum() == 3 * processor.num_image_tokens
    assert batch["weight"] == (labels != IGNORED).sum()
    learnt = labels != IGNORED
    # Wherever something is learnt from a token that has a follower in the row, it is that follower.
    inner = learnt[:, :-1] & (ids[:, 1:] != processor.pad_id)
    assert (labels[:, :-1][inner] == ids[:, 1:][inner]).all()
    assert not learnt[slots].any()
    assert not learnt[ids == processor.pad_id].any()
    caption, document, _, again = ids.tolist()
    assert document == again
    before = caption.index(processor.image_end_id)
    assert not learnt[0, :before].any()
    assert learnt[0, before]
    assert labels[0][learnt[0]].tolist()[-1] == processor.eos_id
    assert document.count(processor.line_end_id) == 1
    assert document.count(processor.eos_id) == 0  # the document's end is only predicted
    assert labels[1][learnt[1]].tolist()[-1] == processor.eos_id
    assert learnt[1, : len(labels[1][learnt[1]])].all()


def test_documents_of_a_group_share_a_row(processor: KosmosGProcessor, place: MakeDraw) -> None:
    group = {"documents": [{"id": "t", "text": "a cat."}, {"id": "u", "text": "a dog in the snow."}]}
    batch = PretrainCollate(processor, length=60)([(place("text", 1), group)])
    assert len(batch["input_ids"]) == 1
    assert (batch["labels"] == processor.eos_id).sum() == 2


@settings(deadline=None, max_examples=25)
@given(seeds=st.lists(st.integers(0, 2**63), min_size=1, max_size=4), lines=st.integers(1, 4000))
def test_a_batch_has_as_many_rows_as_samples_however_long_its_documents_are(
    seeds: list[int], lines: int, processor: KosmosGProcessor, place: MakeDraw
) -> None:
    text = "\n".join(f"a cat and a dog number {line} in the snow." for line in range(lines))
    collate = PretrainCollate(processor, length=64)
    batch = collate([(place("text", seed), {"id": "t", "text": text}) for seed in seeds])
    assert len(batch["input_ids"]) == len(seeds)
    assert batch["input_ids"].shape[1] < 64
    for row, seed in enumerate(seeds):
        alone = collate([(place("text", seed), {"id": "t", "text": text})])
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, :length], alone["input_ids"][0])


def test_instruct_batches_end_without_a_stop_and_carry_the_target(
    processor: KosmosGProcessor, compositions: Records, place: MakeDraw
) -> None:
    collate = InstructCollate(processor, image_size=16)
    edit = {"id": "e", "caption": "a ball.", "instruction": "in the snow"}
    edit |= {"before": compositions[0]["image"], "after": compositions[1]["image"]}
    samples = [
        (place("composition", 1), compositions[0]),
        (place("edit", 2), edit),
        (place("t2i", 3), compositions[2]),
    ]
    batch = collate(samples)
    assert batch["target_pixels"].shape == (3, 3, 16, 16)
    assert batch["target_pixels"].min() >= -1
    assert batch["target_pixels"].max() <= 1
    assert batch["weight"] == 3
    assert batch["seed"].tolist() == [1, 2, 3]
    assert not (batch["input_ids"] == processor.eos_id).any()
    pictures = batch["image_embeds_position_mask"].sum(dim=1) // processor.num_image_tokens
    assert pictures.tolist() == [2, 1, 0]
    torch.testing.assert_close(batch["target_pixels"][1], batch_target(compositions[1]))


def batch_target(record: dict[str, Any]) -> torch.Tensor:
    import io

    import numpy as np

    values = np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGB"), dtype=np.float32)
    return torch.from_numpy((values / 255 - 0.5) / 0.5).permute(2, 0, 1)


@pytest.mark.parametrize("source", ["composition", "interleaved"])
def test_a_sample_does_not_depend_on_its_batch(
    source: str, processor: KosmosGProcessor, compositions: Records, place: MakeDraw
) -> None:
    collate: Any = InstructCollate(processor, image_size=16) if source == "composition" else PretrainCollate(processor)
    samples = [(place(source, seed), record) for seed, record in enumerate(compositions)]
    together = collate(samples)
    pixels = together.get("pixel_values", torch.empty(0))
    for row, sample in enumerate(samples):
        alone = collate([sample])
        length = alone["input_ids"].shape[1]
        for key in ("input_ids", "labels", "image_embeds_position_mask"):
            if key in alone:
                torch.testing.assert_close(together[key][row, :length], alone[key][0])
        count = len(alone["pixel_values"]) if "pixel_values" in alone else 0
        torch.testing.assert_close(pixels[:count], alone.get("pixel_values", torch.empty(0, 3, 32, 32)))
        pixels = pixels[count:]
    assert len(pixels) == 0


def test_seeds_decide_what_is_dropped(processor: KosmosGProcessor, compositions: Records, place: MakeDraw) -> None:
    collate = InstructCollate(processor, image_size=16)
    lengths = [len(collate([(place("composition", seed), compositions[0])])["input_ids"][0]) for seed in range(200)]
    short, long = min(lengths), max(lengths)
    assert set(lengths) == {short, long}
    assert 70 < lengths.count(short) < 130  # half of the samples lose their words


def test_align_pads_to_clips_length_and_shortens_long_captions(
    processor: KosmosGProcessor, tiny_sd_parts: Path, place: MakeDraw
) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd_parts / "tokenizer")
    collate = AlignCollate(processor, tokenizer, clip_length=77, length=12)
    batch = collate([(place("captions", n), r) for n, r in enumerate(captions(["a cat", "a dog in the snow. " * 20]))])
    assert batch["clip_input_ids"].shape == (2, 77)
    assert 8 <= batch["input_ids"].shape[1] <= 12  # whole words
    assert batch["shortened"].tolist() == [0.0, 1.0]
    assert not batch["image_embeds_position_mask"].any()
    assert (batch["input_ids"][0] == processor.pad_id).any()
    short = collate([(place("captions", 0), captions(["a cat"])[0])])
    assert short["input_ids"].shape[1] < batch["input_ids"].shape[1]
    fixed = AlignCollate(processor, tokenizer, length=12, pad_to_length=True)
    assert fixed([(place("captions", 0), captions(["a cat"])[0])])["input_ids"].shape == (1, 12)


def test_align_empties_captions_by_chance(processor: KosmosGProcessor, tiny_sd_parts: Path, place: MakeDraw) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_sd_parts / "tokenizer")
    collate = AlignCollate(processor, tokenizer, empty=0.25)
    batch = collate([(place("captions", seed), captions(["a cat"])[0]) for seed in range(200)])
    empty = (batch["input_ids"][:, 1] == processor.pad_id).sum().item()
    assert 30 < empty < 70
    assert (batch["clip_input_ids"][:, 1] == tokenizer.eos_token_id).sum().item() == empty


def test_a_row_is_cut_between_pictures_never_through_one(processor: KosmosGProcessor) -> None:
    images = [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))]
    ids, slots, found = processor.sequence(["a cat", images[0], images[1], "in the snow"])
    first_end = ids.index(processor.image_end_id) + 1
    for length in range(first_end, first_end + 8):
        cut_ids, cut_slots, kept = fit(ids, slots, found, length, processor)
        assert len(cut_ids) == len(cut_slots) <= length
        assert cut_ids.count(processor.image_end_id) == len(kept)
        assert sum(cut_slots) == len(kept) * processor.num_image_tokens
        assert len(kept) == (2 if length >= first_end + 6 else 1)


def test_targets_are_scaled_and_cropped_around_the_centre() -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 30, 20))
    values = target_pixels(image, 10)
    assert values.shape == (3, 10, 10)
    torch.testing.assert_close(values[:, 5, 5], torch.tensor([-1.0, -1.0, 1.0]))


def test_mistakes_are_named(processor: KosmosGProcessor, compositions: Records, place: MakeDraw) -> None:
    for collate in (InstructCollate(processor), PretrainCollate(processor)):
        with pytest.raises(ConfigError, match=r"cannot read samples of 'scenes'; it knows .*, "):
            collate([(place("scenes", 0), compositions[0])])
    with pytest.raises(ConfigError, match="rows of 7 tokens"):
        PretrainCollate(processor, length=7)
    with pytest.raises(DataError, match="neither a caption nor a text"):
        PretrainCollate(processor)([(place("text", 0), {"id": "x", "parts": []})])


def test_seeds_of_64_bits_fit(processor: KosmosGProcessor, place: MakeDraw) -> None:
    record = {"id": "a", "text": "a cat", "image": encode_image(Image.new("RGB", (16, 16)))}
    batch = InstructCollate(processor, image_size=16)([(place("t2i", 2**64 - 1), record)])
    assert batch["seed"].tolist() == [2**63 - 1]
