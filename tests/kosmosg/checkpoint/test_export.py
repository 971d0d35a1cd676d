"""Exports: written whole, read back exactly, and anything else refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from kosmosg import KosmosG, KosmosGConfig, KosmosGProcessor, Prompt
from kosmosg.checkpoint.export import load_aligner_decoder, load_export, save_export
from kosmosg.conditioners.alignernet import AlignerDecoder
from kosmosg.errors import CheckpointError


@pytest.fixture(scope="module")
def processor(tiny_sentencepiece: Path) -> KosmosGProcessor:
    return KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, image_size=32, num_image_tokens=4)


@pytest.fixture(scope="module")
def model(processor: KosmosGProcessor) -> KosmosG:
    torch.manual_seed(0)
    return KosmosG(KosmosGConfig.tiny(vocab_size=processor.vocab_size)).eval()


@pytest.fixture
def export(model: KosmosG, processor: KosmosGProcessor, tmp_path: Path) -> Path:
    return save_export(model, processor, tmp_path / "export", {"train": {"steps": 3}}, "# A model\n")


def test_export_holds_everything_and_reads_back(model: KosmosG, processor: KosmosGProcessor, export: Path) -> None:
    assert yaml.safe_load((export / "experiment.yaml").read_text()) == {"train": {"steps": 3}}
    assert (export / "README.md").read_text() == "# A model\n"
    loaded, loaded_processor = load_export(export)
    assert not loaded.training
    prompts = [Prompt("a cat in the snow"), Prompt("a dog")]
    expected = model.encode(processor(prompts, return_tensors="pt"))
    found = loaded.encode(loaded_processor(prompts, return_tensors="pt"))
    torch.testing.assert_close(found.positive, expected.positive)
    torch.testing.assert_close(found.negative, expected.negative)
    assert isinstance(AutoProcessor.from_pretrained(export), KosmosGProcessor)
    again = KosmosG.from_pretrained(export)  # an ordinary transformers checkpoint
    for ours, theirs, first in zip(again.parameters(), loaded.parameters(), model.parameters(), strict=True):
        assert ours.equal(first)
        assert theirs.equal(first)


def test_an_export_is_replaced_whole(model: KosmosG, processor: KosmosGProcessor, export: Path) -> None:
    save_export(model, processor, export, {}, "", AlignerDecoder(model.config))
    save_export(model, processor, export, {}, "# Another\n")
    assert not (export / "aligner_decoder").exists()
    assert (export / "README.md").read_text() == "# Another\n"
    assert [path.name for path in export.parent.iterdir()] == ["export"]  # no drafts left


def test_an_export_in_shards_is_replaced_too(
    model: KosmosG, processor: KosmosGProcessor, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kosmosg.checkpoint.export.SHARD_BYTES", 100_000)
    save_export(model, processor, export, decoder=AlignerDecoder(model.config))
    assert len(list(export.rglob("model-*.safetensors"))) > 4
    monkeypatch.undo()
    save_export(model, processor, export)
    assert [path.name for path in export.glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["notes.txt", "figures/loss.png", "aligner_decoder/todo.md", "model.safetensors.bak"])
def test_a_file_of_the_users_in_an_export_survives(
    model: KosmosG, processor: KosmosGProcessor, export: Path, name: str
) -> None:
    (export / name).parent.mkdir(exist_ok=True)
    (export / name).write_text("mine")
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=f"holds {name.split('/')[0]}.* is no part of an export; move it away"):
        save_export(model, processor, export, {}, "# Another\n")
    assert {path: path.read_bytes() for path in export.rglob("*") if path.is_file()} == before
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def test_a_model_of_another_kind_with_the_names_of_an_export_survives(
    model: KosmosG, processor: KosmosGProcessor, export: Path
) -> None:
    rewrite("config.json", lambda config: config.update(model_type="llama"))(export)
    with pytest.raises(CheckpointError, match=r"export is not an export: its config\.json"):
        save_export(model, processor, export, {}, "# Another\n")
    assert (export / "README.md").read_text() == "# A model\n"


def test_failed_export_leaves_the_earlier_one(model: KosmosG, processor: KosmosGProcessor, export: Path) -> None:
    with pytest.raises(yaml.representer.RepresenterError):
        save_export(model, processor, export, {"model": model}, "")
    assert (export / "README.md").read_text() == "# A model\n"
    assert [path.name for path in export.parent.iterdir()] == ["export"]


def rewrite(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def reweigh(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        for place in (folder, folder.parent):  # as somebody who changes weights on purpose
            (place / "SHA256SUMS").unlink(missing_ok=True)

    return apply


NAME = "aligner.encoder.layer_norm.bias"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "is no export: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        (rewrite("config.json", lambda c: c.update(model_type="kosmos-2")), "type 'kosmos-2', not 'kosmosg'"),
        (rewrite("config.json", lambda c: c["text_config"].update(embed_dim=30)), "describes no possible model"),
        (rewrite("config.json", lambda c: c["text_config"].update(ffn_dim=256)), r"is \(128, 64\).*says \(256, 64\)"),
        (rewrite("processor_config.json", lambda c: c.update(image_size=64)), "image size 64, the model 32"),
        (rewrite("processor_config.json", lambda c: c.update(num_image_tokens=9)), "slots an image 9, the model 4"),
        (lambda f: (f / "processor_config.json").unlink(), "holds no Kosmos-G processor"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 9), "not a whole safetensors file"),
        (reweigh(lambda w: w.pop(NAME)), f"lacks the weights of {NAME}"),
        (reweigh(lambda w: w[NAME].fill_(torch.nan)), f"{NAME} in .* not finite"),
    ],
)
def test_what_is_no_export_is_refused(export: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(export)
    with pytest.raises(CheckpointError, match=message):
        load_export(export)


def test_the_aligners_decoder_may_lie_beside_the_model(
    model: KosmosG, processor: KosmosGProcessor, export: Path
) -> None:
    assert load_aligner_decoder(export) is None
    decoder = AlignerDecoder(model.config)
    save_export(model, processor, export, decoder=decoder)
    loaded = load_aligner_decoder(export)
    assert loaded is not None
    assert not loaded.training
    assert all(ours.equal(theirs) for ours, theirs in zip(loaded.parameters(), decoder.parameters(), strict=True))
    assert load_export(export)[0].config.architectures == ["KosmosG"]  # the model opens as before
    reweigh(lambda w: w["decoder.layer_norm.bias"].fill_(torch.nan))(export / "aligner_decoder")
    with pytest.raises(CheckpointError, match=r"decoder.layer_norm.bias in .*aligner_decoder .*not finite"):
        load_aligner_decoder(export)
    reweigh(lambda w: w.pop("decoder.layer_norm.bias"))(export / "aligner_decoder")
    with pytest.raises(CheckpointError, match=r"lacks the weights of decoder.layer_norm.bias"):
        load_aligner_decoder(export)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no export folder"):
        load_export(tmp_path / "nowhere")


def test_processor_of_another_model_is_refused(model: KosmosG, tiny_sentencepiece: Path, tmp_path: Path) -> None:
    other = KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, image_size=224, num_image_tokens=64)
    with pytest.raises(CheckpointError, match="image size 224, the model 32"):
        save_export(model, other, tmp_path / "export")
