"""Prompts become exactly the recorded tokens and slots; nothing a user types can change that."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from kosmosg import (
    CheckpointError,
    ConfigError,
    ImageError,
    KosmosGConfig,
    KosmosGError,
    KosmosGProcessor,
    Prompt,
    PromptError,
)
from kosmosg.processor import CLIP_MEAN, CLIP_STD

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "kosmosg_prompt_tokens.json").read_text())
RNG = np.random.default_rng(0)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


IMAGE = noise(60, 40)


@pytest.fixture(scope="module")
def processor(tiny_sentencepiece: Path) -> KosmosGProcessor:
    return KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, image_size=32, num_image_tokens=4, max_length=64)


@pytest.fixture(scope="module")
def released(shared_data: Path) -> KosmosGProcessor:
    return KosmosGProcessor.from_sentencepiece(shared_data / "data" / "tokenizer" / "sentencepiece.bpe.model")


# -- the real vocabulary ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN, ids=[case["prompt"] or "empty" for case in GOLDEN])
def test_recorded_tokens(released: KosmosGProcessor, case: dict) -> None:
    prompt = Prompt(case["prompt"], [IMAGE] * case["prompt"].count("<i>"))
    batch = released(prompt)
    assert batch["input_ids"].tolist() == [case["src_tokens"]]
    assert batch["image_embeds_position_mask"][0].nonzero().flatten().tolist() == case["img_gpt_input_mask_true"]
    assert released(case["negative_prompt"])["input_ids"].tolist() == [case["negative_tokens"]]


def test_ids_are_those_of_the_released_dictionary(released: KosmosGProcessor, shared_data: Path) -> None:
    lines = (shared_data / "data" / "tokenizer" / "dict.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 63_997
    symbols = ["<s>", "<pad>", "</s>", "<unk>"] + [line.rsplit(" ", 1)[0] for line in lines]
    ids = {symbol: position for position, symbol in enumerate(symbols)}
    for text in ("A photo of <image>, 3/4 view.", "zoë's café — naïve 漢字", "x" * 50, "<s> </s> <unk> </image>"):
        pieces = released.tokenizer.encode(text, out_type=str)
        assert released.tokenize(text) == [ids.get(piece, 3) for piece in pieces]
    assert released.vocab_size == 64_007
    assert (released.doc_end_id, released.image_id, released.image_end_id) == (64_002, 64_003, 64_004)
    assert (released.chunk_end_id, released.line_end_id) == (64_005, 64_006)


def test_typed_markup_is_text_with_the_real_vocabulary(released: KosmosGProcessor) -> None:
    pieces = released.tokenizer.encode("<image>", out_type=str)
    assert pieces == ["▁<", "image", ">"]
    assert max(released.tokenize("<image></image><s></s>")) < released.doc_end_id


# -- the rules, with any vocabulary ----------------------------------------------------------------------------------


def test_golden_structure_holds_for_any_vocabulary(processor: KosmosGProcessor) -> None:
    block = [processor.image_id] * 5 + [processor.image_end_id]
    ids, mask, images = processor.sequence(Prompt("a cat <i> and <i>", [IMAGE, IMAGE]).parts)
    assert ids == [0, *processor.tokenize("a cat "), *block, *processor.tokenize(" and "), *block]
    assert sum(mask) == 8
    assert len(images) == 2
    first = ids.index(processor.image_id)
    assert mask[first : first + 6] == [False, True, True, True, True, False]
    assert processor.sequence(["a cat"], eos=True)[0] == [0, *processor.tokenize("a cat"), 2]


def test_space_around_text_makes_no_token(processor: KosmosGProcessor) -> None:
    assert processor("  a   cat ")["input_ids"].tolist() == processor("a cat")["input_ids"].tolist()
    assert processor.tokenize("   ") == []


def test_no_typed_text_yields_a_special_or_a_slot(processor: KosmosGProcessor) -> None:
    batch = processor(Prompt("<image></image><s></s><pad></doc></line></chunk>"))
    assert not batch["image_embeds_position_mask"].any()
    rest = batch["input_ids"][0, 1:]
    assert rest.min() >= processor.unk_id
    assert rest.max() < processor.doc_end_id


def test_unknown_characters_are_unk(processor: KosmosGProcessor) -> None:
    assert processor.unk_id in processor.tokenize("漢")


def test_the_empty_prompt_is_the_null_prompt(processor: KosmosGProcessor) -> None:
    for batch in (processor(""), processor(Prompt("")), processor.null()):
        assert batch["input_ids"].tolist() == [[0]]
        assert "pixel_values" not in batch
    assert processor.null(3)["input_ids"].shape == (3, 1)


def test_padding_sides_hold_the_same_rows(processor: KosmosGProcessor) -> None:
    prompts = [Prompt("a cat"), Prompt("<i> in the snow", [IMAGE]), Prompt("")]
    right = processor(prompts)
    left = processor(prompts, padding_side="left")
    assert right["attention_mask"][:, 0].tolist() == [1, 1, 1]
    assert left["attention_mask"][:, -1].tolist() == [1, 1, 1]
    for name in ("input_ids", "image_embeds_position_mask"):
        for row in range(3):
            real_right = right[name][row][right["attention_mask"][row].bool()]
            real_left = left[name][row][left["attention_mask"][row].bool()]
            assert torch.equal(real_right, real_left)
    assert (right["input_ids"][~right["attention_mask"].bool()] == processor.pad_id).all()
    assert not right["image_embeds_position_mask"][~right["attention_mask"].bool()].any()


def test_images_come_in_reading_order_over_the_batch(processor: KosmosGProcessor) -> None:
    greys = [Image.new("RGB", (32, 32), (level,) * 3) for level in (0, 100, 200)]
    batch = processor([Prompt("<i> <i>", greys[:2]), Prompt("no image"), Prompt("<i>", greys[2:])])
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert (batch["pixel_values"].mean((1, 2, 3)).diff() > 0).all()


def bicubic(lines: np.ndarray, out: int) -> np.ndarray:
    """Antialiased bicubic interpolation (a = -0.5) along the first axis, rounded to 8 bits as PIL does per pass."""
    scale = max(len(lines) / out, 1.0)
    centres = (np.arange(out) + 0.5) * len(lines) / out
    x = np.abs(np.arange(len(lines))[None] + 0.5 - centres[:, None]) / scale
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    weights /= weights.sum(1, keepdims=True)
    return np.clip(np.rint(np.tensordot(weights, lines, 1)), 0, 255)


@pytest.mark.parametrize("size", [(32, 32), (60, 40), (41, 77), (33, 500), (5, 3), (301, 99)])
def test_pixels_follow_clips_preprocessing(processor: KosmosGProcessor, size: tuple[int, int]) -> None:
    image = noise(*size)
    pixels = processor.pixels(image)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    width, height = (int(32 * side / min(size)) for side in size)
    rows = np.asarray(image, dtype=float)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    # PIL chooses which pass comes first by its cost; the order shows in the rounding between them.
    across_first = bicubic(bicubic(rows.transpose(1, 0, 2), width).transpose(1, 0, 2), height)
    down_first = bicubic(bicubic(rows, height).transpose(1, 0, 2), width).transpose(1, 0, 2)
    levels = (pixels.numpy().transpose(1, 2, 0) * CLIP_STD + CLIP_MEAN) * 255
    distances = [np.abs(levels - full[top : top + 32, left : left + 32]).max() for full in (across_first, down_first)]
    assert min(distances) < 1.01


def test_pixels_need_rgb(processor: KosmosGProcessor) -> None:
    with pytest.raises(ImageError, match="needs an RGB image, got L"):
        processor.pixels(Image.new("L", (4, 4)))


def test_too_long_is_refused_with_both_numbers(processor: KosmosGProcessor) -> None:
    assert processor(Prompt("<i>" * 10, [IMAGE] * 10))["input_ids"].shape == (1, 61)
    with pytest.raises(PromptError, match=r"prompt 1 takes 67 tokens \(66 for 11 images, 1 for text\).*holds 64"):
        processor([Prompt(""), Prompt("<i>" * 11, [IMAGE] * 11)])


def test_wrong_calls(processor: KosmosGProcessor, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="0 prompts"):
        processor([])
    with pytest.raises(PromptError, match="prompt 0 is a int"):
        processor([1])
    with pytest.raises(PromptError, match="1 places"):
        processor("<i> without an image")
    with pytest.raises(ConfigError, match="padding_side='up'"):
        processor("a", padding_side="up")
    with pytest.raises(ConfigError, match="num_image_tokens"):
        KosmosGProcessor(processor.tokenizer, num_image_tokens=0)
    with pytest.raises(CheckpointError, match=r"no processor_config\.json"):
        KosmosGProcessor.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no sentencepiece model"):
        KosmosGProcessor.from_sentencepiece(tmp_path / "absent.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="is not a sentencepiece model"):
        KosmosGProcessor.from_sentencepiece(tmp_path / "bad.model")


def test_save_load_and_pickle_give_the_same_batches(processor: KosmosGProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "processor")
    prompts = ["a cat in the snow", Prompt("<i> and <i>", [IMAGE, IMAGE])]
    expected = processor(prompts)
    for other in (
        KosmosGProcessor.from_pretrained(tmp_path / "processor"),
        KosmosGProcessor.from_pretrained(tmp_path, subfolder="processor"),
        pickle.loads(pickle.dumps(processor)),  # noqa: S301 Ray sends it between processes
    ):
        assert other.to_dict() == processor.to_dict()
        batch = other(prompts)
        assert set(batch) == set(expected)
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_it_is_found_by_transformers_auto_class(processor: KosmosGProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    KosmosGConfig.tiny(processor.vocab_size).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, KosmosGProcessor)
    assert loaded.to_dict() == processor.to_dict()


def test_a_hub_id_loads_from_the_cache(processor: KosmosGProcessor, tmp_path: Path) -> None:
    """The cache of huggingface_hub, laid out as a download leaves it: no network is needed."""
    snapshot = tmp_path / "models--someone--kosmos" / "snapshots" / ("0" * 40)
    processor.save_pretrained(snapshot)
    reference = tmp_path / "models--someone--kosmos" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("0" * 40)
    loaded = KosmosGProcessor.from_pretrained("someone/kosmos", cache_dir=tmp_path, local_files_only=True)
    assert loaded.vocab_size == processor.vocab_size


def test_images_may_stay_out_of_the_batch(processor: KosmosGProcessor) -> None:
    prompt = Prompt("<i> here", [IMAGE])
    batch = processor(prompt, with_pixels=False)
    assert "pixel_values" not in batch
    assert torch.equal(batch["input_ids"], processor(prompt)["input_ids"])


def test_a_processor_of_another_kind_is_refused(tmp_path: Path, processor: KosmosGProcessor) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    with pytest.raises(CheckpointError, match="describes a CLIPProcessor"):
        KosmosGProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is damaged"), ("[]", "is damaged"), ('{"processor_class": "KosmosGProcessor"}', "image_size is None")],
)
def test_a_damaged_processor_is_refused(
    content: str, message: str, tmp_path: Path, processor: KosmosGProcessor
) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(KosmosGError, match=message):
        KosmosGProcessor.from_pretrained(tmp_path)


def test_decoding_gives_the_text_back(processor: KosmosGProcessor) -> None:
    batch = processor([Prompt("a cat<i>in the snow.", [IMAGE]), Prompt("a dog.")])
    assert processor.batch_decode(batch["input_ids"]) == ["a cat in the snow.", "a dog."]
