"""Fixtures for the whole test tree."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import settings

from tests.object_store import ObjectStore
from tests.small_disk import mounted

# Tiny tensors gain nothing from threads, and threads that wait for each other on a busy machine lose minutes. Read when
# torch is first imported, so it stands before any fixture.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is kept per node (`kosmosg.node_cache`) would otherwise pile up in the home folder.
if "KOSMOSG_CACHE" not in os.environ:
    os.environ["KOSMOSG_CACHE"] = tempfile.mkdtemp(prefix="kosmosg-test-cache-")
    atexit.register(shutil.rmtree, os.environ["KOSMOSG_CACHE"], ignore_errors=True)

# On a busy machine an example takes seconds that has nothing wrong with it.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

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
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server, up for all tests of the session that ask for it."""
    server = ObjectStore(tmp_path_factory.mktemp("object_store"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def object_store(s3_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The S3 server, with its address and credentials in the environment."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


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


def save_tiny_sd(folder: Path, sample_size: int = 8, dim: int = 32) -> Path:
    """Saves a whole Stable Diffusion of about 0.1 M random weights in the diffusers layout: U-Net, VAE, scheduler,
    CLIP text encoder and tokenizer. `dim` is the width of its condition; a latent is half as
    wide as the image."""
    import string

    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    characters = list(string.ascii_lowercase + string.digits + ".,'-")
    symbols = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{character}</w>" for character in characters)]
    tokenizer = CLIPTokenizer(
        vocab={symbol: position for position, symbol in enumerate(symbols)}, merges=[], model_max_length=77
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(symbols),
            hidden_size=dim,
            intermediate_size=2 * dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=dim,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=2 * sample_size,
    )
    scheduler = PNDMScheduler(  # the scheduler config of Stable Diffusion 1.5
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny stock Stable Diffusion; 16 x 16 pixels, conditions 32 wide. Read only."""
    return save_tiny_sd(tmp_path_factory.mktemp("sd") / "tiny")


@pytest.fixture(scope="session")
def tiny_processor(tiny_sentencepiece: Path):
    """The processor of `tiny_model`."""
    from kosmosg import KosmosGProcessor

    return KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, image_size=32, num_image_tokens=4, max_length=510)


@pytest.fixture(scope="session")
def tiny_model(tiny_processor):
    """A Kosmos-G of random weights in eval mode, with the vocabulary of `tiny_processor`. Read only."""
    import torch

    from kosmosg import KosmosG, KosmosGConfig

    torch.manual_seed(0)
    return KosmosG(KosmosGConfig.tiny(tiny_processor.vocab_size)).eval()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which `tests.small_disk.remount` fills up or makes read-only."""
    with mounted(tmp_path / "disk") as place:
        yield place


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster for the whole test run."""
    from kosmosg_platform.cluster.session import ScaleConfig, local

    # Ray gives its workers low priority, which makes tests crawl on a machine with other work.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with local(ScaleConfig(workers=2)):
        yield


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP of random weights with its processor, in transformers' layout; 224 pixels as the real one."""
    import string

    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("clip")
    characters = list(string.ascii_lowercase + string.digits + ".,'-")
    symbols = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{character}</w>" for character in characters)]
    vocabulary = {symbol: position for position, symbol in enumerate(symbols)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77).save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    part = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**part, "vocab_size": len(symbols), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**part, "patch_size": 32}, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of random weights in the layout of `facebook/dino-vits16`."""
    import torch
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=224, patch_size=16
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
