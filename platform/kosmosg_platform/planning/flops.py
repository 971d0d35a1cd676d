"""What a stage computes and stores, counted from the shapes: FLOPs, weights, activations.

A multiply-add counts as two FLOPs, as in the published counts, against which a test checks them.
Letters: T tokens, d width, f width of the feed-forward layer, Q slots of an image or queries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kosmosg.config import KosmosGConfig
from kosmosg.data.records import stage_samples
from kosmosg.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class DecoderCost:
    """A frozen decoder: FLOPs of one image or text, weights, and values that the U-Net stores for the backward pass."""

    unet_flops: float
    encode_flops: float
    text_flops: float
    parameters: int
    text_parameters: int
    kept: float


STABLE_DIFFUSION = DecoderCost(803.3e9, 1116.7e9, 13.3e9, 859_520_964 + 83_653_863, 123_060_480, 3602 * 2**20 / 4)
"""Stable Diffusion 1.5 at 512 x 512, counted on torch's meta device."""


@dataclass(frozen=True)
class StageCost:
    """One sample of one stage, and the weights of the whole stage."""

    stage: str
    trainable: int  # parameters
    frozen: int  # parameters
    flops: float  # of one sample, forward and backward
    recomputed: float  # further FLOPs when activations are checkpointed
    kept: float  # values kept of one sample for the backward pass
    kept_checkpointed: float  # the same when activations are checkpointed


def stage_cost(stage: str, config: KosmosGConfig, decoder: DecoderCost, weights: Mapping[str, float]) -> StageCost:
    """The cost of an average sample of a stage. `weights` are the shares of its sample kinds; empty takes the defaults.

    Raises ConfigError for a kind that the stage does not read.
    """
    samples = {name: sample for name, (_, sample) in stage_samples(stage).items()}
    unknown = set(weights) - set(samples)
    if unknown:
        raise ConfigError(f"data.weights.{min(unknown)}: {stage} has no such kind; it knows {', '.join(samples)}")
    shares = weights or {name: sample.share for name, sample in samples.items()}
    total = sum(shares.values())
    kinds = [(share / total, samples[name].words, samples[name].images) for name, share in shares.items()]
    flops = recomputed = kept = kept_checkpointed = 0.0
    for share, words, images in kinds:
        one = _sample(stage, config, decoder, words, images)
        flops += share * one[0]
        recomputed += share * one[1]
        # Memory is decided by the largest sample of a batch, time by the mean.
        kept, kept_checkpointed = max(kept, one[2]), max(kept_checkpointed, one[3])
    return StageCost(stage, *_parameters(stage, config, decoder), flops, recomputed, kept, kept_checkpointed)


def _sample(
    stage: str, config: KosmosGConfig, decoder: DecoderCost, words: int, images: int
) -> tuple[float, float, float, float]:
    text = config.text_config
    tokens = words + images * (config.latent_query_num + 2)
    lm, tower = language_model(config, tokens), images * vision(config)
    resampler = images * perceiver(config)
    lm_kept = text.layers * tokens * _layer_kept(text.embed_dim, text.ffn_dim, text.attention_heads, tokens)
    lm_inputs = text.layers * tokens * text.embed_dim + lm_kept / text.layers
    m, m_kept = aligner(config, tokens), _aligner_kept(config, tokens, config.aligner_config.num_queries)
    m_inputs = m_kept / (2 * config.aligner_config.layers)
    if stage == "pretrain":
        words_out = logits(config, tokens)
        kept = lm_kept + 2 * tokens * text.vocab_size
        return 3 * (lm + words_out + resampler) + tower, lm, kept, lm_inputs + 2 * tokens * text.vocab_size
    if stage == "align":
        # The language model and CLIP only run forward; M and N are trained.
        n = aligner_decoder(config, tokens)
        n_kept = _aligner_kept(config, config.aligner_config.num_queries, tokens)
        return lm + decoder.text_flops + 3 * (m + n), m + n, m_kept + n_kept, m_inputs + n_kept / 12
    # The gradient passes through the frozen U-Net (twice its forward), not into the VAE.
    flops = 3 * (lm + resampler + m) + tower + 2 * decoder.unet_flops + decoder.encode_flops
    kept = lm_kept + m_kept + decoder.kept
    return flops, lm + m + decoder.unet_flops, kept, lm_inputs + m_inputs + decoder.kept / 8


def _parameters(stage: str, config: KosmosGConfig, decoder: DecoderCost) -> tuple[int, int]:
    """Trainable and frozen parameters."""
    trained = sum(trainable_sizes(stage, config).values())
    whole = sum(_sizes(config).values())
    if stage == "pretrain":  # the aligner is not part of the stage
        return trained, whole - sum(_sizes(config, "aligner.").values()) - trained
    if stage == "align":
        return trained, whole - sum(_sizes(config, "aligner.").values()) + decoder.text_parameters
    return trained, whole - trained + decoder.parameters


def trainable_sizes(stage: str, config: KosmosGConfig) -> dict[str, int]:
    """Values of each parameter that a stage trains, by name, from the model's own shapes."""
    from math import prod

    from kosmosg.checkpoint.export import parameter_shapes
    from kosmosg.conditioners.alignernet import AlignerDecoder

    aligner = _sizes(config, "aligner.")
    if stage == "align":
        n = {f"decoder.{name}": prod(shape) for name, shape in parameter_shapes(config, AlignerDecoder).items()}
        return aligner | n
    last = f"vision_model.model.encoder.layers.{config.vision_config.num_hidden_layers - 1}."
    open_vision = {
        name: size
        for name, size in _sizes(config).items()
        if "vision_model" not in name or last in name or ".post_layernorm." in name
    }
    return open_vision if stage == "instruct" else {k: v for k, v in open_vision.items() if k not in aligner}


def _sizes(config: KosmosGConfig, prefix: str = "") -> dict[str, int]:
    """Values of each parameter of the model whose name begins like that."""
    from math import prod

    from kosmosg.checkpoint.export import parameter_shapes

    return {name: prod(shape) for name, shape in parameter_shapes(config).items() if name.startswith(prefix)}


def _attention(queries: int, keys: int, d: int) -> float:
    """Projections of queries, keys, values and output, scores, and sums."""
    return 4.0 * (queries * d * d + keys * d * d + queries * keys * d)


def language_model(config: KosmosGConfig, tokens: int) -> float:
    """Decoder layers over T tokens, without logits."""
    d, f = config.text_config.embed_dim, config.text_config.ffn_dim
    return float(config.text_config.layers * (_attention(tokens, tokens, d) + 4 * tokens * d * f))


def logits(config: KosmosGConfig, tokens: int) -> float:
    """Projection of hidden states to the vocabulary."""
    return float(2 * tokens * config.text_config.embed_dim * config.text_config.vocab_size)


def vision(config: KosmosGConfig) -> float:
    """The tower, for one image."""
    v = config.vision_config
    patches = (v.image_size // v.patch_size) ** 2
    d, f, tokens = v.hidden_size, v.intermediate_size, patches + 1
    layers = v.num_hidden_layers * (_attention(tokens, tokens, d) + 4 * tokens * d * f)
    return float(layers + 2 * patches * 3 * v.patch_size**2 * d)


def perceiver(config: KosmosGConfig) -> float:
    """The resampler, for one image: one cross-attention of Q latents over patches and themselves."""
    v, d, slots = config.vision_config, config.text_config.embed_dim, config.latent_query_num
    tokens = (v.image_size // v.patch_size) ** 2 + 1
    return float(2 * tokens * v.hidden_size * d + _attention(slots, tokens + slots, d))


def aligner(config: KosmosGConfig, tokens: int) -> float:
    """M: T states are encoded, then Q queries attend to them."""
    a = config.aligner_config
    return float(2 * tokens * config.text_config.embed_dim * a.d_model) + _stacks(config, tokens, a.num_queries)


def aligner_decoder(config: KosmosGConfig, tokens: int) -> float:
    """N: T queries attend to M's output, then are encoded and projected to the language model's width."""
    a = config.aligner_config
    d, f = a.d_model, a.ffn_dim
    queries = _attention(tokens, tokens, d) + _attention(tokens, a.num_queries, d) + 4 * tokens * d * f
    encoder = _attention(tokens, tokens, d) + 4 * tokens * d * f
    return float(a.layers * (queries + encoder) + 2 * tokens * d * config.text_config.embed_dim)


def _stacks(config: KosmosGConfig, tokens: int, queries: int) -> float:
    a = config.aligner_config
    d, f = a.d_model, a.ffn_dim
    encoder = _attention(tokens, tokens, d) + 4 * tokens * d * f
    reader = _attention(queries, queries, d) + _attention(queries, tokens, d) + 4 * queries * d * f
    return float(a.layers * (encoder + reader))


def _layer_kept(d: int, f: int, heads: int, keys: int, normed: bool = True) -> float:
    """Values that one layer stores per token; fitted to what autograd stores for our layers, to within 5 %.

    `normed`: with a LayerNorm inside the feed-forward layer, as in the language model.
    """
    return 10.0 * d + (3.4 if normed else 2.0) * f + heads * keys


def _aligner_kept(config: KosmosGConfig, tokens: int, queries: int) -> float:
    a = config.aligner_config
    encoder = tokens * _layer_kept(a.d_model, a.ffn_dim, a.attention_heads, tokens, False)
    reader = queries * (_layer_kept(a.d_model, a.ffn_dim, a.attention_heads, queries + tokens, False) + 6 * a.d_model)
    return float(a.layers * (encoder + reader + 2 * tokens * a.d_model))


def decoder_cost(source: str) -> DecoderCost:
    """A decoder's cost: counted from the configuration of a folder; for a Hub id, that of Stable Diffusion 1.5."""
    from kosmosg.hub import decoder_folder

    folder = Path(decoder_folder(source))
    return _counted(folder) if folder.is_dir() else STABLE_DIFFUSION


def _counted(folder: Path) -> DecoderCost:
    """Run the components on torch's meta device, which computes shapes but no values."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    try:
        with torch.device("meta"):
            unet: Any = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
            vae: Any = AutoencoderKL.from_config(AutoencoderKL.load_config(folder, subfolder="vae"))
            text: Any = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
            size = int(unet.config.sample_size)
            latents = torch.randn(1, unet.config.in_channels, size, size)
            side = size * 2 ** (len(vae.config.block_out_channels) - 1)
            condition = torch.randn(1, 77, unet.config.cross_attention_dim, requires_grad=True)
            unet.requires_grad_(False)
            unet_flops, kept = _count(lambda: unet(latents, torch.tensor([1]), condition), unet)
            with torch.no_grad():
                encode_flops, _ = _count(lambda: vae.encode(torch.randn(1, 3, side, side)), vae)
                ids = torch.ones(1, text.config.max_position_embeddings, dtype=torch.long)
                text_flops, _ = _count(lambda: text(ids), text)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"decoder {folder} has no usable configuration ({str(error).splitlines()[0]})") from None
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (unet, vae, text)]
    return DecoderCost(unet_flops, encode_flops, text_flops, sizes[0] + sizes[1], sizes[2], kept)


def _count(run: Callable[[], Any], module: Any) -> tuple[float, float]:
    """FLOPs of a call, and the values that autograd stores for it besides the weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    known = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as count:
        run()
    values = sum(tensor.untyped_storage().nbytes() / tensor.element_size() for tensor in kept.values())
    return float(count.get_total_flops()), values
