"""Small random models in the form of the real annotators, made on the spot and saved as the real ones are."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.blip import BlipImageProcessorPil
from transformers.models.vit import ViTImageProcessorPil

from kosmosg.data.annotators.language_model import TASK

WORDS = ["a cat and a dog in the garden", "Description Things . , :", TASK]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    words.train_from_iterator(WORDS, trainers.WordLevelTrainer(special_tokens=specials))
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )


def tiny_blip2(folder: Path) -> Path:
    """Save a small blip2 of random weights; returns its folder."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    processor = Blip2Processor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer, num_query_tokens=2)
    text = {
        "model_type": "opt", "vocab_size": len(processor.tokenizer), "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Blip2Config(
        vision_config=small | {"image_size": 16, "patch_size": 8},
        qformer_config=small | {"encoder_hidden_size": 16, "vocab_size": 8},
        text_config=text,
        num_query_tokens=2,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_language_model(folder: Path) -> Path:
    """Save a small language_model of random weights; returns its folder."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_clipseg(folder: Path) -> Path:
    """Save a small clipseg of random weights; returns its folder."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPSegConfig(
        text_config=size
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config=size | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    CLIPSegProcessor(processor, tokenizer).save_pretrained(folder)
    return folder
