"""The endpoint as its users meet it: deployed by the command on a Ray cluster, asked over HTTP."""

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import torch
from PIL import Image
from ray import serve

from kosmosg import KosmosGPipeline, Prompt
from kosmosg.diffusion.schedulers import make_scheduler
from kosmosg_platform.inference.client import Client, EndpointError, Generated, serving

pytestmark = pytest.mark.slow

TEXT = [{"type": "text", "text": "a cat in the snow"}]


def square(colour: str, side: int = 40) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def data_url(image: Image.Image, kind: str = "PNG") -> dict[str, object]:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


INTERLEAVED = Prompt("<i> and <i> in the snow", images=[square("red"), square("blue", 60)])


@pytest.fixture(scope="module")
def before_ready() -> list[tuple[int, str | None]]:
    """Answers of /readyz and their Retry-After while the endpoint started; filled by the fixture `client`."""
    return []


@pytest.fixture(scope="module")
def client(
    ray_cluster: None,
    export: Path,
    decoder: Path,
    before_ready: list[tuple[int, str | None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """The endpoint of `kosmosg serve tiny`, on the cluster of the tests."""
    words = ["tiny", f"model={export}", f"decoder={decoder}"]
    log = tmp_path_factory.mktemp("serve") / "serve.log"
    port = free_port()
    up = threading.Event()

    def watch() -> None:
        while not up.is_set():
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                before_ready.append((answer.status_code, answer.headers.get("Retry-After")))
            except httpx.TransportError:
                pass
            time.sleep(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        address = ray.get_runtime_context().gcs_address
        with serving(words, log=log, port=port, address=address) as client:
            up.set()
            yield client
    finally:
        up.set()
        watcher.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def generate_patiently(client: Client, **settings: Any) -> Generated:
    """Ask again after the time that a full endpoint names, as its users do."""
    for _ in range(30):
        try:
            return client.generate(INTERLEAVED, **settings)
        except EndpointError as error:
            if error.status != 429 or error.retry_after is None:
                raise
            time.sleep(error.retry_after)
    raise AssertionError("the endpoint stayed full for a minute")


def refusal(client: Client, **body: object) -> tuple[int, dict[str, object]]:
    answer = httpx.post(f"{client.url}/v1/generate", json={"parts": TEXT} | body)
    error = answer.json()["error"]
    assert set(error) == {"type", "code", "message", "param"}, "the shape that OpenAI's clients read"
    return answer.status_code, error


def test_it_says_starting_until_the_model_is_there(client: Client, before_ready) -> None:
    assert (503, "2") in before_ready
    assert client.ready()
    assert httpx.get(f"{client.url}/healthz").json() == {"status": "ok"}


def test_an_image_is_that_of_the_library(client: Client, export: Path, decoder: Path) -> None:
    """Same export, decoder and seeds: what HTTP gives is what `KosmosGPipeline` generates in one's own process."""
    served = client.generate(INTERLEAVED, n=2, seed=7, steps=5, guidance=4.0, negative="a dog")
    assert served.seeds == [7, 8]
    pipeline = KosmosGPipeline.from_pretrained(export, decoder=str(decoder))
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        INTERLEAVED,
        num_inference_steps=5,
        guidance_scale=4.0,
        negative_prompt="a dog",
        num_images_per_prompt=2,
        generator=[torch.Generator().manual_seed(seed) for seed in served.seeds],
    ).images
    for mine, theirs in zip(served.images, expected, strict=True):
        assert pixels(theirs).std() > 5
        assert np.abs(pixels(mine) - pixels(theirs)).max() <= 2


def test_a_scheduler_over_http_is_that_of_a_fresh_pipeline(client: Client, export: Path, decoder: Path) -> None:
    """Whatever schedulers were asked for before, and whichever share its steps."""
    names = ["dpms", "euler", "ddim", "heun"]
    expected = {}
    for name in names:
        pipeline = KosmosGPipeline.from_pretrained(export, decoder=str(decoder))
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config)
        generator = torch.Generator().manual_seed(4)
        expected[name] = pipeline(INTERLEAVED, num_inference_steps=6, guidance_scale=3.0, generator=generator).images[0]

    def ask(name: str) -> float:
        image = generate_patiently(client, seed=4, steps=6, guidance=3.0, scheduler=name).images[0]
        return np.abs(pixels(image) - pixels(expected[name])).max()

    one_after_another = {name: ask(name) for name in [*names, *reversed(names)]}
    with ThreadPoolExecutor(len(names)) as pool:
        interleaved = dict(zip(names, pool.map(ask, names), strict=True))
    assert max(one_after_another.values()) <= 2, one_after_another
    assert max(interleaved.values()) <= 2, interleaved


def test_an_image_does_not_depend_on_its_company(client: Client) -> None:
    seeds = range(20, 26)
    alone = [client.generate(INTERLEAVED, seed=seed).images[0] for seed in seeds[:2]]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: generate_patiently(client, seed=seed, n=1 + seed % 2), seeds))
    for lone, shared in zip(alone, together, strict=False):
        assert np.abs(pixels(lone) - pixels(shared.images[0])).max() <= 2


def test_the_order_of_images_matters(client: Client) -> None:
    swapped = Prompt("<i> and <i> in the snow", images=[*reversed(INTERLEAVED.images)])
    first, second = (np.array(client.condition(prompt)["positive"]["data"]) for prompt in (INTERLEAVED, swapped))
    assert np.abs(first - second).max() > 1e-3


def test_a_known_prompt_is_not_encoded_again(client: Client) -> None:
    prompt = Prompt("a dog on the sand beside <i>", images=[square("green")])
    first, second = (client.generate(prompt, seed=1).answer["usage"] for _ in range(2))
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["prompt_tokens"] > 6
    assert (first["input_images"], first["output_images"], first["unet_rows"]) == (1, 1, 8)


def test_a_stream_shows_partial_images(client: Client) -> None:
    events = list(client.stream(INTERLEAVED, seed=3, steps=6, n=2, partial_images=2))
    names = [name for name, _ in events]
    assert names.count("progress") == 6
    assert names.count("partial_image") == 4, "two of each image"
    assert names[-1] == "completed"
    assert [data["step"] for name, data in events if name == "progress"] == list(range(1, 7))
    partial = next(data for name, data in events if name == "partial_image")
    assert Image.open(io.BytesIO(base64.b64decode(partial["b64_json"]))).size == (16, 16)
    whole = client.generate(INTERLEAVED, seed=3, steps=6, n=2).answer["data"]
    assert events[-1][1]["data"] == whole


def test_formats_sizes_and_seeds(client: Client) -> None:
    for kind in ("png", "jpeg", "webp"):
        answer = client.generate(Prompt("a cat"), format=kind, size="48x32", seed=5).answer
        image = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        assert (image.format, image.size) == (kind.upper(), (48, 32))
    one, two = client.generate(Prompt("a cat")), client.generate(Prompt("a cat"))
    assert one.seeds != two.seeds, "without a seed every image is another"
    again = client.generate(Prompt("a cat"), seed=one.seeds[0])
    assert np.array_equal(pixels(one.images[0]), pixels(again.images[0]))


def test_conditions_for_other_peoples_pipelines(client: Client, export: Path, decoder: Path) -> None:
    answer = client.condition(INTERLEAVED, negative="a dog")
    pipeline = KosmosGPipeline.from_pretrained(export, decoder=str(decoder))
    expected = pipeline.encode(INTERLEAVED, "a dog")
    for side in ("positive", "negative"):
        assert answer[side]["shape"] == [77, 32]
        np.testing.assert_allclose(answer[side]["data"], getattr(expected, side)[0], atol=1e-5)
    body = {"parts": TEXT, "encoding_format": "base64"}
    packed = httpx.post(f"{client.url}/v1/condition", json=body).json()["positive"]
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype="<f4").reshape(packed["shape"])
    np.testing.assert_allclose(values, pipeline.encode("a cat in the snow").positive[0], atol=1e-5)


def test_models_tell_what_may_be_asked(client: Client) -> None:
    (card,) = client.models()
    assert (card["id"], card["size"], card["size_step"]) == ("kosmosg", "16x16", 4)
    assert card["defaults"]["steps"] == 4
    assert card["limits"]["n"] == 4
    paths = httpx.get(f"{client.url}/openapi.json").json()["paths"]
    assert {"/v1/generate", "/v1/condition", "/v1/models", "/healthz", "/readyz"} <= set(paths)
    answers = paths["/v1/generate"]["post"]["responses"]
    assert set(answers) == {"200", "400", "404", "413", "422", "429", "503"}
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    assert answers["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"sed": 1}, 422, "sed", "sed: there is no such field"),
        ({"n": 9}, 422, "n", "n: 9 images requested, the limit is 4"),
        ({"steps": 101}, 422, "steps", "the limit is 100"),
        ({"steps": 0}, 422, "steps", "greater than or equal to 1"),
        ({"size": "33x32"}, 422, "size", "33 of 33x32 is not a multiple of 4"),
        ({"size": "128x128"}, 422, "size", "the limit is 4096"),
        ({"size": "big"}, 422, "size", "not WIDTHxHEIGHT"),
        ({"scheduler": "magic"}, 422, "scheduler", "not one of dpms, ddim"),
        ({"model": "other"}, 404, "model", "this server has 'kosmosg'"),
        ({"lora": [{"name": "oil"}]}, 404, "lora", "'oil' is not loaded"),
        ({"parts": []}, 422, "parts", "at least 1 item"),
        ({"parts": [{"type": "text", "text": "x" * 501}]}, 422, None, "501 characters of text, the limit is 500"),
        ({"parts": [{"type": "text", "text": "a <i>"}]}, 422, None, "images are parts of their own"),
        ({"parts": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}, 422, None, "is not fetched here"),
        ({"parts": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}, 422, None, "read"),
        ({"parts": [data_url(Image.new("1", (3000, 3000)))]}, 422, None, "9000000 pixels, the limit is 4000000"),
        ({"parts": [data_url(square("red"))] * 17}, 422, None, "17 images, the limit is 16"),
        ({"negative": "x" * 2_000_001}, 413, None, "limit of 2000000 bytes"),
    ],
)
def test_what_cannot_be_is_refused_with_the_limit(
    client: Client, body: dict[str, object], status: int, param: str | None, message: str
) -> None:
    answered, error = refusal(client, **body)
    assert answered == status, error
    assert error["param"] == param
    assert message in str(error["message"])


def test_broken_requests(client: Client) -> None:
    post = httpx.post(f"{client.url}/v1/generate", content=b"{", headers={"Content-Type": "application/json"})
    assert (post.status_code, post.json()["error"]["code"]) == (400, "invalid_json")
    assert httpx.get(f"{client.url}/v1/generate").status_code == 405
    lost = httpx.get(f"{client.url}/v1/nothing")
    assert (lost.status_code, lost.json()["error"]["type"]) == (404, "not_found_error")
    chunks = httpx.post(f"{client.url}/v1/generate", content=(b"x" * 100_000 for _ in range(30)))
    assert chunks.status_code == 413, "a body of unknown length is counted"


def test_too_much_at_once_is_refused_with_a_time_to_wait(client: Client) -> None:
    """The preset takes 4 requests under way and 2 waiting."""

    def ask(seed: int) -> EndpointError | None:
        try:
            client.generate(Prompt("a cat"), seed=seed, steps=100)
        except EndpointError as error:
            return error
        return None

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(ask, range(16)))
    refused = [error for error in outcomes if error is not None]
    assert 4 <= outcomes.count(None) < 16
    assert {(error.status, error.code, error.retry_after) for error in refused} == {(429, "queue_full", 2.0)}
    assert client.generate(Prompt("a cat"), seed=1).images, "afterwards there is room again"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(client: Client, stream: bool) -> None:
    active = serve.get_deployment_handle("Decoder", "kosmosg").active
    assert active.remote().result() == 0
    body = {"parts": TEXT, "steps": 100, "n": 4, "size": "64x64", "stream": stream, "partial_images": 0}
    try:
        with httpx.stream("POST", f"{client.url}/v1/generate", json=body, timeout=None if stream else 0.5) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert active.remote().result() == 1
    except httpx.ReadTimeout:
        assert not stream, "only the plain request is given up by the clock"
    left = time.monotonic()
    while active.remote().result() and time.monotonic() - left < 10:
        time.sleep(0.02)
    assert active.remote().result() == 0
    assert time.monotonic() - left < 1.5, "all hundred steps would take longer"
