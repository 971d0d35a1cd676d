"""How fast conditioning is: our encoder beside transformers' Kosmos-2, bare matrix products, and a whole generation.

    python tests/benchmarks/model.py                       # a few minutes on two cores
    python tests/benchmarks/model.py --device cuda --dtype bfloat16 --layers 24

Full width (2048), few layers, random weights: both models hold the *same* weights and read the same inputs. Columns are
measured in turn, round after round, so that a noisy machine is noisy for all; what is printed is the median round.
The pipelines share one U-Net, sampler and size. Nothing here passes or fails.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmosg import KosmosG, KosmosGConfig, KosmosGPipeline, KosmosGProcessor, Prompt
from kosmosg.convert import from_kosmos2
from kosmosg.model.mllm import KosmosGForConditionalGeneration
from kosmosg.shapes import new_config
from kosmosg.toyworld.assets import toyworld_folder

BATCHES = (1, 4, 8)
LENGTHS = (20, 96, 170)
VOCABULARY = 64007


def main() -> None:
    """Print the tables."""
    options = arguments()
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    print(f"torch {torch.__version__}, {device}, {options.dtype}, {options.threads} threads, {options.layers} layers")
    ours, theirs = models(options.layers, device, dtype)
    with torch.inference_mode():
        text_stack(ours, theirs, options.rounds)
        images(ours, theirs, options.rounds)
    del ours, theirs
    generation(device, options.rounds)
    if options.full:
        full_size(device, dtype)


def text_stack(ours: KosmosGForConditionalGeneration, theirs: Any, rounds: int) -> None:
    """States of B prompts of T tokens: ours, the peer (bare stack, public forward), matrix products alone."""
    print("\n| B | T | matrix products | ours | peer's bare stack | peer's forward | ours / products | ours / peer |")
    print("|---|---|---|---|---|---|---|---|")
    for batch in BATCHES:
        for length in LENGTHS:
            ids = torch.randint(4, 60_000, (batch, length), device=ours.device)
            mask = torch.ones_like(ids)
            reference = theirs.text_model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            difference = (ours.states(ids) - reference).abs().max()
            assert difference < (1e-3 if ours.dtype == torch.float32 else 0.5), f"not the same model: {difference}"
            times = in_turn(
                {
                    "products": products(ours, batch, length),
                    "ours": lambda ids=ids: ours.states(ids),
                    "stack": lambda ids=ids, mask=mask: theirs.text_model.model(input_ids=ids, attention_mask=mask),
                    "public": lambda ids=ids, mask=mask: theirs.text_model(input_ids=ids, attention_mask=mask),
                },
                rounds,
            )
            shown = " | ".join(f"{1000 * times[name]:.1f} ms" for name in ("products", "ours", "stack", "public"))
            print(
                f"| {batch} | {length} | {shown} | {times['ours'] / times['products']:.2f} "
                f"| {times['ours'] / times['stack']:.2f} |",
                flush=True,
            )


def images(ours: KosmosGForConditionalGeneration, theirs: Any, rounds: int) -> None:
    """Image tokens of N reference images."""
    print("\n| images | ours | peer's vision and projection | ours / peer |\n|---|---|---|---|")
    for count in (1, 2):
        size = ours.config.vision_config.image_size
        pixels = torch.randn(count, 3, size, size, device=ours.device, dtype=ours.dtype)

        def peer(pixels: torch.Tensor = pixels) -> Any:
            tokens = theirs.vision_model.model.post_layernorm(theirs.vision_model(pixels).last_hidden_state)
            return theirs.image_to_text_projection(torch.nn.functional.normalize(tokens, dim=-1))

        times = in_turn({"ours": lambda pixels=pixels: ours.image_tokens(pixels), "peer": peer}, rounds)
        ratio = times["ours"] / times["peer"]
        print(f"| {count} | {1000 * times['ours']:.1f} ms | {1000 * times['peer']:.1f} ms | {ratio:.2f} |", flush=True)


def generation(device: torch.device, rounds: int) -> None:
    """50 steps with guidance: our pipeline beside the stock one with CLIP, on one U-Net; new prompts and known ones."""
    from diffusers import StableDiffusionPipeline

    folder = toyworld_folder()
    options: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    stock = StableDiffusionPipeline.from_pretrained(folder, **options).to(device)
    processor = KosmosGProcessor.from_sentencepiece(folder / "sentencepiece.bpe.model", 32, 16)
    pipe = KosmosGPipeline(KosmosG(new_config("toyworld", processor.vocab_size)).eval(), processor, decoder=stock)
    pipe.to(device)
    for pipeline in (stock, pipe, pipe.decoder):
        pipeline.set_progress_bar_config(disable=True)
    text = "a striped red ball and a spotted blue cat in the snow at night"
    settings = {"num_inference_steps": 50, "guidance_scale": 3.0}

    def fresh() -> Any:
        pipe.encoder.clear()
        return pipe(Prompt(text), **settings)

    def condition_only() -> Any:
        pipe.encoder.clear()
        return pipe.encode(Prompt(text))

    calls = {
        "stock": lambda: stock(text, **settings),
        "ours, new prompt": fresh,
        "ours, seen before": lambda: pipe(Prompt(text), **settings),
        "conditioning alone": condition_only,
    }
    times = in_turn(calls, rounds)
    print("\n| 50 steps at 32x32 (the toy world's sizes) | time | of stock |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {1000 * seconds:.0f} ms | {seconds / times['stock']:.3f} |")


def full_size(device: torch.device, dtype: torch.dtype) -> None:
    """The published sizes, random weights: conditioning of two images and 42 words, and a guided step at 512x512."""
    from diffusers import UNet2DConditionModel

    steps = 50
    with torch.device(device), torch.inference_mode():
        model = KosmosG(KosmosGConfig.paper()).to(dtype).eval()
        tokens = 2 * (model.config.latent_query_num + 2) + 42
        ids = torch.randint(4, 60_000, (1, tokens))
        places = torch.zeros_like(ids, dtype=torch.bool)
        for start in (10, 90):
            places[:, start : start + model.config.latent_query_num] = True
        pixels = torch.randn(2, 3, 224, 224, dtype=dtype)
        prompt = {"input_ids": ids, "image_embeds_position_mask": places, "pixel_values": pixels}
        condition = model.conditioning(**prompt)
        conditioning = in_turn({"it": partial(model.conditioning, **prompt)}, 3)["it"]
        del model
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).to(dtype).eval()
        latents = torch.randn(2, 4, 64, 64, dtype=dtype)
        step = in_turn({"it": lambda: unet(latents, 500, condition.expand(2, -1, -1))}, 3)["it"]
    print(f"\n| {tokens} tokens, 2 images, 512x512 | time |\n|---|---|")
    print(f"| conditioning | {conditioning:.3f} s |\n| one guided step | {step:.3f} s |")
    print(f"| conditioning / {steps} steps | {conditioning / (steps * step):.4f} |")


def models(layers: int, device: torch.device, dtype: torch.dtype) -> tuple[KosmosGForConditionalGeneration, Any]:
    """Ours and the peer with the same random weights, at full width."""
    text = {"vocab_size": VOCABULARY, "layers": layers, "max_position_embeddings": 2048}
    vision = {"num_hidden_layers": layers}
    torch.manual_seed(0)
    theirs = Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=vision)).eval()
    config = KosmosGConfig.paper()
    config.text_config.layers = layers
    config.vision_config.num_hidden_layers = layers
    config.aligner_config.layers = 1  # not measured here
    ours = from_kosmos2(theirs.state_dict(), config).mllm.eval()
    return ours.to(device, dtype), theirs.to(device, dtype)


def products(model: KosmosGForConditionalGeneration, batch: int, length: int) -> Callable[[], Any]:
    """The same matrix products with nothing between them: projections, feed-forward, attention."""
    text = model.config.text_config
    width, hidden, heads = text.embed_dim, text.ffn_dim, text.attention_heads
    rows = torch.randn(batch * length, width, device=model.device, dtype=model.dtype)
    square = [torch.randn_like(rows[:1].expand(width, width)).contiguous() for _ in range(4)]
    up = torch.randn(width, hidden, device=model.device, dtype=model.dtype)
    down = torch.randn(hidden, width, device=model.device, dtype=model.dtype)
    query = torch.randn(batch * heads, length, width // heads, device=model.device, dtype=model.dtype)
    # Every layer has weights of its own in the models; here too, or they would stay in the cache.
    layers = [([m.clone() for m in square], up.clone(), down.clone()) for _ in range(text.layers)]

    def run() -> None:
        for squares, first, second in layers:
            for matrix in squares:
                rows @ matrix
            (query @ query.transpose(1, 2)) @ query
            (rows @ first) @ second

    return run


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; one unmeasured round first."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            synchronize()
            began = time.perf_counter()
            call()
            synchronize()
            if index:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--layers", type=int, default=4, help="layers of language model and vision tower")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--full", action="store_true", help="also time the published sizes (10 GB of memory in fp32)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
