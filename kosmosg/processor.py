"""`KosmosGProcessor`: turns prompts into tensors. All of the model's input constants are defined here.

Tokens (reference: the released fairseq dictionary, checked against its recorded ids):
- `id = sentencepiece id + 1`, except the four specials `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3;
- after the pieces come `<mask>`, `</doc>`, `<image>`, `</image>`, `</chunk>`, `</line>`: V = pieces + 7;
- every piece of text between images is encoded separately, so each begins with its own space mark;
- an image is `<image>`, then Q slots holding the id of `<image>`, then `</image>`. The mask is True on the slots only;
- a sequence begins with `<s>` and, at inference and in stages 2 and 3, has no `</s>`: upstream drops it in batching.

Pixels: RGB, shorter side to S by PIL's bicubic filter, centre crop, CLIP's mean and deviation.

Shape legend: B prompts, T tokens, N images of the batch in reading order, S pixels per side, Q slots per image.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import sentencepiece
import torch
from PIL import Image
from transformers import AutoProcessor, BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils.hub import cached_file

from kosmosg.config import KosmosGConfig
from kosmosg.conversation import conversation_prompts
from kosmosg.errors import CheckpointError, ConfigError, ImageError, PromptError
from kosmosg.hub import local_name
from kosmosg.prompt import Prompt

SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
CONFIG_FILE = "processor_config.json"

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # RGB in 0..1; OpenAI CLIP
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class KosmosGProcessor(ProcessorMixin):
    """Turns prompts into `input_ids`, `attention_mask`, `image_embeds_position_mask` and `pixel_values`.

    Build one with `from_sentencepiece` or `from_pretrained`.

    Args:
        tokenizer: a loaded sentencepiece model whose ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`.
        image_size: S, pixels per side that the vision tower takes.
        num_image_tokens: Q, slots that one image fills in the sequence (`latent_query_num` of the model).
        max_length: longest sequence in tokens; the released model was built for 2048 positions.
        extra_tokens: ids after the last special token that the model has but text never produces; 1,030 for a model
            with Kosmos-2's grounding tokens (`kosmosg.convert.grow_vocabulary`).
    """

    # The parent's attribute would look for tokenizer and image processor classes of transformers; we have our own.
    # Being a ProcessorMixin lets diffusers and the Hub save and load it with a pipeline.
    bos_id, pad_id, eos_id, unk_id = 0, 1, 2, 3

    def __init__(
        self,
        tokenizer: sentencepiece.SentencePieceProcessor,
        image_size: int = 224,
        num_image_tokens: int = 64,
        max_length: int = 2048,
        extra_tokens: int = 0,
    ) -> None:
        for name, value, least in (
            ("image_size", image_size, 1),
            ("num_image_tokens", num_image_tokens, 1),
            ("max_length", max_length, 1),
            ("extra_tokens", extra_tokens, 0),
        ):
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"processor.{name} is {value!r}, must be a whole number of at least {least}")
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.num_image_tokens = num_image_tokens
        self.max_length = max_length
        self.extra_tokens = extra_tokens
        first = tokenizer.vocab_size() + 1  # <mask>
        self.doc_end_id = first + 1
        self.image_id = first + 2
        self.image_end_id = first + 3
        self.chunk_end_id = first + 4
        self.line_end_id = first + 5
        self.vocab_size: int = first + 6 + extra_tokens
        self._mean = np.asarray(CLIP_MEAN, dtype=np.float32)
        self._std = np.asarray(CLIP_STD, dtype=np.float32)

    # -- saving and loading ------------------------------------------------------------------------------------------

    @classmethod
    def from_sentencepiece(
        cls,
        model_path: str | Path,
        image_size: int = 224,
        num_image_tokens: int = 64,
        max_length: int = 2048,
        extra_tokens: int = 0,
    ) -> Self:
        """Create a processor from a sentencepiece file; the defaults are those of the released Kosmos-G."""
        path = Path(model_path)
        if not path.is_file():
            raise CheckpointError(f"there is no sentencepiece model {path}; pass the path of {SENTENCEPIECE_FILE}")
        tokenizer = sentencepiece.SentencePieceProcessor()
        try:
            tokenizer.LoadFromSerializedProto(path.read_bytes())
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} is not a sentencepiece model ({error}); pass {SENTENCEPIECE_FILE}"
            ) from error
        specials = (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id())
        if specials != (0, 1, 2):
            raise CheckpointError(
                f"{path} has unk, bos, eos at {specials}, the id rule needs (0, 1, 2); train it with these ids"
            )
        return cls(tokenizer, image_size, num_image_tokens, max_length, extra_tokens)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote, by any model name (kosmosg/hub.py); `revision`, ... as usual."""
        pretrained_model_name_or_path = local_name(pretrained_model_name_or_path)
        known = ("subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
        options = {name: kwargs[name] for name in known if kwargs.get(name) is not None}
        paths: dict[str, Path] = {}
        for name in (CONFIG_FILE, SENTENCEPIECE_FILE):
            try:
                found = cached_file(str(pretrained_model_name_or_path), name, **options)
            except OSError as error:
                raise CheckpointError(
                    f"{pretrained_model_name_or_path} has no {name}, so it holds no Kosmos-G processor; "
                    "pass an export folder, or use KosmosGProcessor.from_sentencepiece"
                ) from error
            paths[name] = Path(str(found))
        try:
            config = json.loads(paths[CONFIG_FILE].read_text(encoding="utf-8"))
            kind = config.get("processor_class")
            sizes = {name: config.get(name) for name in ("image_size", "num_image_tokens", "max_length")}
            sizes["extra_tokens"] = config.get("extra_tokens", 0)
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{paths[CONFIG_FILE]} is damaged ({error}); copy the folder again") from error
        if kind != cls.__name__:
            raise CheckpointError(f"{paths[CONFIG_FILE]} describes a {kind}, not a {cls.__name__}; pass another folder")
        return cls.from_sentencepiece(paths[SENTENCEPIECE_FILE], **sizes)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Writes `processor_config.json` and the sentencepiece model; the exact inverse of `from_pretrained`."""
        if push_to_hub:
            raise ConfigError("save_pretrained only writes the folder; then call processor.push_to_hub(repo_id)")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / SENTENCEPIECE_FILE).write_bytes(self.tokenizer.serialized_model_proto())
        return [str(folder / CONFIG_FILE), str(folder / SENTENCEPIECE_FILE)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "processor_class": type(self).__name__,
            "image_size": self.image_size,
            "num_image_tokens": self.num_image_tokens,
            "max_length": self.max_length,
            "extra_tokens": self.extra_tokens,
        }

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.to_dict().items() if name != "processor_class")
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, {settings})"

    # -- prompts to tensors ------------------------------------------------------------------------------------------

    def __call__(
        self,
        prompts: Prompt | str | Sequence[Prompt | str],
        return_tensors: str = "pt",
        padding_side: Literal["right", "left"] = "right",
        with_pixels: bool = True,
    ) -> BatchFeature:
        """A batch: `input_ids (B, T)` long, `attention_mask (B, T)` long, `image_embeds_position_mask (B, T)` bool,
        and, if any prompt has an image, `pixel_values (N, 3, S, S)` float in reading order over the whole batch.

        A `str` is a prompt without images. The empty prompt is `<s>` alone, the null prompt of guidance. Padding goes
        to the right as in training; pass `padding_side="left"` for `generate()`. `with_pixels=False` omits the images,
        for callers that already have the image tokens.

        Raises:
            PromptError: a prompt is longer than `max_length` tokens (nothing is truncated), or the list is empty.
        """
        if return_tensors != "pt":
            raise ConfigError(f"return_tensors={return_tensors!r} is not supported; use 'pt'")
        if padding_side not in ("right", "left"):
            raise ConfigError(f"padding_side={padding_side!r} is not supported; use 'right' or 'left'")
        listed = [prompts] if isinstance(prompts, Prompt | str) else list(prompts)
        if not listed:
            raise PromptError("there are 0 prompts; pass at least one, the empty prompt is Prompt('')")
        rows: list[tuple[list[int], list[bool]]] = []
        images: list[Image.Image] = []
        for position, prompt in enumerate(listed):
            if not isinstance(prompt, Prompt | str):
                raise PromptError(f"prompt {position} is a {type(prompt).__name__}; pass a Prompt or a str")
            parts = (prompt if isinstance(prompt, Prompt) else Prompt(prompt)).parts
            ids, mask, found = self.sequence(parts)
            if len(ids) > self.max_length:
                slots = len(found) * (self.num_image_tokens + 2)
                raise PromptError(
                    f"prompt {position} takes {len(ids)} tokens ({slots} for {len(found)} images, "
                    f"{len(ids) - slots} for text), the model holds {self.max_length}; "
                    "leave out images or shorten the text"
                )
            rows.append((ids, mask))
            images += found
        return self._collate(rows, images if with_pixels else [], padding_side)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Any],
        chat_template: None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str = "pt",
        padding_side: Literal["right", "left"] = "left",
        add_generation_prompt: bool = False,
    ) -> Any:
        """Conversations in the format of transformers' processors: messages, or content parts, in order.

        Returns the prompt's text, with `<i>` for each image, or with `tokenize=True` a batch ready for `generate()`.
        The model has no roles, so there is no template and `add_generation_prompt` adds nothing.
        """
        if chat_template is not None:
            raise ConfigError("this model has no roles and therefore no chat template; leave chat_template out")
        prompts, several = conversation_prompts(conversation)
        if not tokenize:
            texts = [prompt.text for prompt in prompts]
            return texts if several else texts[0]
        batch = self(prompts, return_tensors=return_tensors, padding_side=padding_side)
        return batch if return_dict else batch["input_ids"]

    def null(self, batch_size: int = 1) -> BatchFeature:
        """The batch of the null prompt, `<s>` alone, which condition dropout trains and guidance uses."""
        return self._collate([([self.bos_id], [False])] * batch_size, [], "right")

    def sequence(
        self, parts: Sequence[str | Image.Image], eos: bool = False
    ) -> tuple[list[int], list[bool], list[Image.Image]]:
        """`<s>`, then each part in order: token ids, slot mask (True where an image feature goes), images in order.

        `eos` appends `</s>`, which the model sees only in stage 1. Lengths are not limited here.
        """
        ids, mask, images = [self.bos_id], [False], list[Image.Image]()
        for part in parts:
            if isinstance(part, str):
                piece = self.tokenize(part)
                ids += piece
                mask += [False] * len(piece)
            else:
                block, slots = self.image_block()
                ids += block
                mask += slots
                images.append(part)
        if eos:
            ids.append(self.eos_id)
            mask.append(False)
        return ids, mask, images

    def tokenize(self, text: str) -> list[int]:
        """Ids of one piece of text, without specials. Markup is plain text: no input can forge an image slot."""
        # Pieces 0..2 are <unk>, <s>, </s>; the encoder never emits the last two for text.
        return [piece + 1 if piece > 0 else self.unk_id for piece in self.tokenizer.encode(text)]

    def image_block(self) -> tuple[list[int], list[bool]]:
        """Ids and slot mask of one image: `<image>`, Q slots, `</image>`."""
        slots = self.num_image_tokens
        ids = [self.image_id] + [self.image_id] * slots + [self.image_end_id]
        return ids, [False] + [True] * slots + [False]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """One RGB image as `(3, S, S)` float: shorter side to S (bicubic), centre crop, CLIP normalisation."""
        if image.mode != "RGB" or 0 in image.size:
            raise ImageError(f"pixels needs an RGB image, got {image.mode} of {image.size}; read it by kosmosg.prompt")
        size = self.image_size
        width, height = image.size
        short = min(width, height)
        # torchvision's rules, as in the original: the longer side is rounded down, the crop offset to even.
        width, height = (size * width // short, size * height // short)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        image = image.crop((left, top, left + size, top + size))
        values = (np.asarray(image, dtype=np.float32) / np.float32(255) - self._mean) / self._std
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def _collate(
        self, rows: Sequence[tuple[list[int], list[bool]]], images: Sequence[Image.Image], padding_side: str
    ) -> BatchFeature:
        shape = (len(rows), max(len(ids) for ids, _ in rows))
        input_ids = torch.full(shape, self.pad_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        slots = torch.zeros(shape, dtype=torch.bool)
        for row, (ids, mask) in enumerate(rows):
            here = slice(0, len(ids)) if padding_side == "right" else slice(shape[1] - len(ids), shape[1])
            input_ids[row, here] = torch.tensor(ids)
            attention_mask[row, here] = 1
            slots[row, here] = torch.tensor(mask)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "image_embeds_position_mask": slots}
        if images:
            batch["pixel_values"] = torch.stack([self.pixels(image) for image in images])
        return BatchFeature(batch)

    # -- tokens to text ----------------------------------------------------------------------------------------------

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "image_embeds_position_mask", "pixel_values"]

    def decode(self, token_ids: Sequence[int] | torch.Tensor, **kwargs: Any) -> str:
        """The text of generated ids, without specials, images and padding."""
        first = self.unk_id + 1
        last = self.tokenizer.vocab_size()  # id of the last piece
        return str(self.tokenizer.decode([int(i) - 1 for i in token_ids if first <= int(i) <= last]))

    def batch_decode(self, sequences: Sequence[Sequence[int]] | torch.Tensor, **kwargs: Any) -> list[str]:
        """`decode` for each row."""
        return [self.decode(row) for row in sequences]


AutoProcessor.register(KosmosGConfig, KosmosGProcessor, exist_ok=True)
