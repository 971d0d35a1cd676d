"""The job that judges: from a data folder to a page, images that are drawn once, mistakes in one sentence."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import evaluate
from jobs.experiment import load
from kosmosg import KosmosG, KosmosGPipeline, KosmosGProcessor, Prompt
from kosmosg.checkpoint.export import save_export
from kosmosg.errors import ConfigError, DataError, KosmosGError
from kosmosg.eval.benchmarks.base import open_benchmark
from kosmosg.eval.benchmarks.dreambench_data import SUBJECTS, make_cases
from kosmosg.eval.features.inception import Inception
from kosmosg.eval.protocol import find_protocol
from kosmosg.shapes import new_config
from kosmosg_platform.evaluation.runner import sampling_of
from kosmosg_platform.inference.generation import (
    GenerationTask,
    ImageGenerator,
    image_key,
    image_path,
    read_request,
    save_requests,
)
from kosmosg_platform.inference.sampling import GenerationRequest, initial_noise


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests: making one takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, tiny_model: KosmosG, tiny_processor: KosmosGProcessor) -> Path:
    return save_export(tiny_model, tiny_processor, tmp_path_factory.mktemp("evaluate") / "export")


def settings(output: Path, export: Path, decoder: Path, *more: str) -> list[str]:
    """Two steps at the size of the tiny decoder."""
    tiny = ["evaluate.steps=2", "evaluate.size=16", "evaluate.rows=4"]
    return [f"output={output}", f"decoder={decoder}", f"evaluate.models={{tiny: {export}}}", *tiny, *more]


def generator(store: Path, export: Path, decoder: Path, evaluation: list[str]) -> ImageGenerator:
    """What an actor does, in this process."""
    sampling = sampling_of(evaluate.settle(load("evaluate", "tiny", evaluation).evaluate))
    return ImageGenerator(GenerationTask(str(export), str(decoder), sampling, str(store)))


class TestGeneration:
    @pytest.fixture
    def orders(self, tmp_path: Path) -> list[GenerationRequest]:
        Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
        photo, picture = tmp_path / "red.png", Image.new("RGB", (30, 20), "blue")
        return [
            GenerationRequest("<i> at sea", (photo,)),
            GenerationRequest("a cat"),
            GenerationRequest("<i> and <i>", (picture, photo)),
        ]

    def test_orders_survive_their_file(self, tmp_path: Path, orders: list[GenerationRequest]) -> None:
        save_requests(tmp_path / "store", orders)
        lines = (tmp_path / "store" / "prompts.jsonl").read_text().splitlines()
        found = [read_request(tmp_path / "store", line) for line in lines]
        assert [prompt for prompt, _ in found] == [Prompt(order.text, images=order.images) for order in orders]

    def test_a_pictures_own_noise_is_the_same_in_any_batch(
        self, tmp_path: Path, orders: list[GenerationRequest], export: Path, tiny_sd_parts: Path
    ) -> None:
        """And equals what the pipeline draws alone with that seed."""
        evaluation = ["evaluate.protocol=dreambench", "evaluate.size=16", "evaluate.steps=2", "evaluate.pictures=2"]
        for batch in (2, 3):
            save_requests(tmp_path / str(batch), orders)
            draw = generator(tmp_path / str(batch), export, tiny_sd_parts, [*evaluation, f"evaluate.batch={batch}"])
            assert [draw("0"), draw("0")] == [2 * batch, 0], "what is there is left alone"
        pipe = KosmosGPipeline.from_pretrained(export, decoder=str(tiny_sd_parts))
        pipe.set_progress_bar_config(disable=True)
        prompt = Prompt(orders[1].text)
        noise = torch.Generator().manual_seed(3)  # image 3 is the second of prompt 1
        alone = pipe(prompt, num_inference_steps=2, guidance_scale=7.5, generator=noise).images[0]
        for batch in (2, 3):
            drawn = Image.open(image_path(tmp_path / str(batch), 3))
            assert np.abs(np.asarray(drawn).astype(int) - np.asarray(alone).astype(int)).max() <= 2

    def test_a_batchs_noise_is_laid_out_as_published(
        self, tmp_path: Path, orders: list[GenerationRequest], export: Path, tiny_sd_parts: Path
    ) -> None:
        """The original draws p0, p1, p2, p0, p1, p2 from one generator; we keep the images of a prompt together."""
        save_requests(tmp_path / "store", orders)
        evaluation = ["evaluate.protocol=dreambench-kosmosg", "evaluate.size=16", "evaluate.pictures=2"]
        made = generator(tmp_path / "store", export, tiny_sd_parts, evaluation)
        latents = initial_noise(made.pipe, [0, 1, 2], orders, made.sampling)["latents"]
        whole = torch.randn((6, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        assert torch.equal(latents, whole[[0, 3, 1, 4, 2, 5]])

    def test_folder_is_named_by_what_shapes_pictures(self, orders: list[GenerationRequest], export: Path) -> None:
        def key(*values: str, decoder: str = "toyworld", ask: list[GenerationRequest] = orders) -> str:
            chosen = load("evaluate", "tiny", ["evaluate.protocol=dreambench-kosmosg", *values]).evaluate
            return image_key(export, decoder, ask, sampling_of(evaluate.settle(chosen)))

        changes = ["steps=3", "guidance=2.0", "seed=1", "batch=7", "scheduler=euler", "size=64", "pictures=1"]
        keys = {key(), key(decoder="other"), key(ask=orders[1:]), *(key(f"evaluate.{change}") for change in changes)}
        assert len(keys) == 3 + len(changes)

    @pytest.mark.parametrize("part", ["model", "decoder"])
    def test_a_model_or_decoder_that_changed_in_place_gets_new_images(
        self, tmp_path: Path, orders: list[GenerationRequest], export: Path, tiny_sd_parts: Path, part: str
    ) -> None:
        """Their contents count, not their paths: one byte at the same path, size and time of modification is another
        model, and a copy elsewhere is the same."""
        sampling = sampling_of(evaluate.settle(load("evaluate", "tiny", []).evaluate))
        for name, source in (("model", export), ("decoder", tiny_sd_parts)):
            shutil.copytree(source, tmp_path / name)
        model, decoder = tmp_path / "model", tmp_path / "decoder"
        before = image_key(model, str(decoder), orders, sampling)
        assert before == image_key(export, str(tiny_sd_parts), orders, sampling), "a copy is the same"
        weights = next((tmp_path / part).rglob("*.safetensors"))
        if part == "decoder":
            weights = next((decoder / "unet").glob("*.safetensors"))
        stat = weights.stat()
        with weights.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert image_key(model, str(decoder), orders, sampling) != before

    def test_a_reference_that_changed_in_place_gets_new_images(
        self, tmp_path: Path, orders: list[GenerationRequest], export: Path
    ) -> None:
        sampling = sampling_of(evaluate.settle(load("evaluate", "tiny", []).evaluate))
        before = image_key(export, "toyworld", orders, sampling)
        Image.new("RGB", (40, 40), "green").save(tmp_path / "red.png")
        assert image_key(export, "toyworld", orders, sampling) != before


@pytest.mark.slow
def test_dreambench_from_photos_to_a_page(
    ray_cluster: None,
    shared_data: Path,
    export: Path,
    tiny_sd_parts: Path,
    tiny_clip: Path,
    tiny_dino: Path,
    tmp_path: Path,
    tracking: str,
) -> None:
    """On the thirty real photos, two images each; the first block was drawn before by a run that was stopped."""
    photos = shared_data / "data" / "dreambench"
    given = settings(
        tmp_path,
        export,
        tiny_sd_parts,
        "evaluate.protocol=dreambench-kosmosg",
        f"evaluate.data={photos}",
        f"evaluate.weights={{dino: {tiny_dino}, clip: {tiny_clip}}}",
        "evaluate.prompts=1",
        "evaluate.pictures=2",
        "evaluate.batch=15",
        f"tracking.uri={tracking}",
    )
    experiment = load("evaluate", "tiny", given)
    cases = make_cases(photos, count=1)
    orders = [GenerationRequest(case.text, (case.photo,)) for case in cases]
    store = tmp_path / "evaluate" / "images"
    store /= image_key(export, experiment.decoder, orders, sampling_of(evaluate.settle(experiment.evaluate)))
    save_requests(store, orders)
    generator(store, export, tiny_sd_parts, given)("0")
    stamps = {path: path.stat().st_mtime_ns for path in store.rglob("*.png")}
    assert len(stamps) == 30

    folder = evaluate.run(experiment)
    assert folder == tmp_path / "evaluate" / "dreambench-kosmosg"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), (
        "finished batches are not generated again"
    )
    assert len(list(store.rglob("0*.png"))) == 60
    rows = json.loads((folder / "scores.json").read_text())
    assert [row["set"] for row in rows] == ["all", *(subject.name for subject in SUBJECTS)]
    assert rows[0]["pictures"] == 60
    for name in ("dino", "clip_i", "clip_t"):
        assert -1 <= rows[0][f"{name}_low"] <= rows[0][name] <= rows[0][f"{name}_high"] <= 1
        assert np.mean([row[name] for row in rows[1:]]) == pytest.approx(rows[0][name]), "subjects have equal weight"
    protocol = json.loads((folder / "protocol.json").read_text())
    assert {row["protocol"] for row in rows} == {protocol["id"]}
    assert "steps 2 instead of 100" in protocol["deviations"]
    page = (folder / "report.html").read_text()
    assert page.count("published, own protocol") > 20
    assert protocol["id"] in page
    assert "grey_sloth_plushie" in page
    assert Image.open(folder / "sheet.png").width > 300

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking)
    named = f"tags.protocol = '{protocol['id']}'"
    (run,) = client.search_runs([client.get_experiment_by_name("kosmosg").experiment_id], named)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["tiny/all/clip_t"] == pytest.approx(rows[0]["clip_t"])

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluate").rglob("*.np*")}
    evaluate.run(experiment)
    assert json.loads((folder / "scores.json").read_text()) == rows
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "evaluate").rglob("*.np*")}


@pytest.mark.slow
def test_fid_from_captions_to_a_number(
    ray_cluster: None, export: Path, tiny_sd_parts: Path, tmp_path: Path, tracking: str
) -> None:
    """Captions and images of one's own; the images were all drawn before."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(data / "images" / f"{number}.png")
    (data / "captions.tsv").write_text("".join(f"{number}.png\ta cat {number}\n" for number in range(4)))
    torch.manual_seed(0)
    torch.save(Inception().state_dict(), tmp_path / "inception.pth")
    given = settings(
        tmp_path,
        export,
        tiny_sd_parts,
        "evaluate.protocol=coco-metaquery",
        f"evaluate.data={data}",
        f"evaluate.weights={{inception: {tmp_path / 'inception.pth'}}}",
        "evaluate.prompts=3",
        f"tracking.uri={tracking}",
    )
    experiment = load("evaluate", "tiny", given)
    orders = [GenerationRequest(f"a cat {number}") for number in range(3)]
    store = tmp_path / "evaluate" / "images"
    store /= image_key(export, experiment.decoder, orders, sampling_of(evaluate.settle(experiment.evaluate)))
    save_requests(store, orders)
    draw = generator(store, export, tiny_sd_parts, given)
    assert [draw(str(block)) for block in range(3)] == [1, 1, 1]

    folder = evaluate.run(experiment)
    (row,) = json.loads((folder / "scores.json").read_text())
    assert (row["pictures"], row["real"]) == (3, 3), "compared with the captions' own images, not with all four"
    assert row["fid"] > 0
    page = (folder / "report.html").read_text()
    assert "3 images are too few" in page
    assert "MetaQuery-XL" in page
    protocol = json.loads((folder / "protocol.json").read_text())
    assert "count 3 instead of 30000" in protocol["deviations"]


def test_world_has_a_protocol_too(ray_cluster: None, tmp_path: Path, tracking: str) -> None:
    """And its images are those that were drawn before there were protocols: case k has the noise of seed k."""
    from kosmosg.toyworld.assets import toyworld_folder

    torch.manual_seed(0)
    processor = KosmosGProcessor.from_sentencepiece(
        str(toyworld_folder() / "sentencepiece.bpe.model"), image_size=32, num_image_tokens=16
    )
    model = save_export(KosmosG(new_config("toyworld", processor.vocab_size)), processor, tmp_path / "export")
    few = ["evaluate.cases=1", "evaluate.text_only=false", f"tracking.uri={tracking}"]
    experiment = load("evaluate", "tiny", [f"output={tmp_path}", f"evaluate.models={{one: {model}}}", *few])
    cases = open_benchmark(find_protocol("toyworld"), evaluate.benchmark_settings(experiment.evaluate)).cases
    orders = [GenerationRequest(case.text, case.images) for case in cases]
    store = tmp_path / "evaluate" / "images"
    store /= image_key(model, "toyworld", orders, sampling_of(evaluate.settle(experiment.evaluate)))
    save_requests(store, orders)
    assert generator(store, model, Path("toyworld"), few)("0") == 3
    pipe = KosmosGPipeline.from_pretrained(model, decoder="toyworld")
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(1)
    alone = pipe(
        Prompt(cases[1].text, images=cases[1].images), num_inference_steps=4, guidance_scale=3.0, generator=noise
    ).images[0]
    drawn = np.asarray(Image.open(image_path(store, 1)))
    assert np.abs(drawn.astype(int) - np.asarray(alone).astype(int)).max() <= 2

    folder = evaluate.run(experiment)
    rows = json.loads((folder / "scores.json").read_text())
    protocol = json.loads((folder / "protocol.json").read_text())
    assert [row["set"] for row in rows] == ["one", "two", "three"]
    assert {row["protocol"] for row in rows} == {protocol["id"]}
    assert set(protocol["weights"]) == {"recogniser"}
    assert protocol["deviations"] == ["steps 4 instead of 20", "count 1 instead of 32"]
    assert protocol["id"] in (folder / "report.html").read_text()


class TestMistakes:
    """Each is told before anything is drawn, so no test here starts a cluster."""

    def evaluate(self, tmp_path: Path, export: Path, *more: str) -> None:
        evaluate.run(load("evaluate", "tiny", settings(tmp_path, export, tmp_path, *more)))

    def test_unknown_protocol(self, tmp_path: Path, export: Path) -> None:
        with pytest.raises(ConfigError, match=r"there is no 'dream'; .*choose one of coco-clean"):
            self.evaluate(tmp_path, export, "evaluate.protocol=dream")

    def test_no_data(self, tmp_path: Path, export: Path) -> None:
        with pytest.raises(ConfigError, match=r"evaluate\.data: dreambench compares with real images"):
            self.evaluate(tmp_path, export, "evaluate.protocol=dreambench")
        with pytest.raises(DataError, match="holds no subject of DreamBench"):
            self.evaluate(tmp_path, export, "evaluate.protocol=dreambench", f"evaluate.data={tmp_path}")
        with pytest.raises(DataError, match="holds no captions"):
            self.evaluate(tmp_path, export, "evaluate.protocol=coco-clean", f"evaluate.data={tmp_path}")

    def test_wrong_weights(self, tmp_path: Path, export: Path) -> None:
        given = ["evaluate.protocol=coco-clean", f"evaluate.data={tmp_path}", "evaluate.prompts=1"]
        (tmp_path / "images").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
        (tmp_path / "captions.tsv").write_text("a cat\n")
        with pytest.raises(
            ConfigError, match=r"evaluate\.weights\.dino: coco-clean has no such network; it uses incep"
        ):
            self.evaluate(tmp_path, export, *given, "evaluate.weights={dino: x}")
        with pytest.raises(KosmosGError, match="give the path of pt_inception"):
            self.evaluate(tmp_path, export, *given)

    def test_unknown_scheduler_and_model(self, tmp_path: Path, export: Path) -> None:
        with pytest.raises(ConfigError, match=r"evaluate\.scheduler: there is no 'magic'; choose one of dpms"):
            self.evaluate(tmp_path, export, "evaluate.scheduler=magic")
        with pytest.raises(KosmosGError, match=r"there is no model .*none"):
            self.evaluate(tmp_path, tmp_path / "none")
