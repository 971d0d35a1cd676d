"""The routes over an engine in this process: answers, streams, errors and turns, without Ray."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import httpx
import numpy as np
import pytest

from kosmosg.prompt import Prompt
from serving.api.errors import ApiError
from serving.api.http_app import http_app
from serving.config import ServingConfig
from serving.engine.messages import DecoderInfo, EncodedPrompt, Event, ImageRequest
from serving.engine.step_engine import StepEngine
from serving.replicas.image_decoder import ImageDecoder

BODY: dict[str, Any] = {"parts": [{"type": "text", "text": "a cat"}], "guidance": 1.0, "size": "1x1"}


class InProcess:
    """A backend whose conditions are zeros."""

    def __init__(self, engine: StepEngine) -> None:
        self.decoder = ImageDecoder(engine)
        self.absent: list[str] = []

    async def about(self) -> DecoderInfo:
        native_size, size_step, schedulers = self.decoder.about()
        return DecoderInfo(native_size, size_step, schedulers, queries=2, width=4)

    async def missing(self) -> list[str]:
        return self.absent

    async def encode(self, prompt: Prompt, negative: str | None) -> EncodedPrompt:
        nothing = np.zeros((2, 4), np.float32)
        return EncodedPrompt(nothing, nothing, tokens=3, cached=False)

    async def generate(self, request: ImageRequest) -> AsyncGenerator[Event]:
        async with aclosing(self.decoder.generate(request)) as events:
            async for event in events:
                yield event


@pytest.fixture
def backend(instant_engine: StepEngine) -> InProcess:
    return InProcess(instant_engine)


def ask(backend: InProcess, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]], **settings: Any) -> Any:
    async def asked() -> Any:
        app = http_app(backend, ServingConfig(**settings))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await scenario(client)

    return asyncio.run(asked())


def test_a_short_request_of_another_size_is_not_held_up_by_a_long_one(backend: InProcess) -> None:
    finished: list[str] = []

    async def scenario(client: httpx.AsyncClient) -> None:
        async def one(size: str, steps: int) -> None:
            answer = await client.post("/v1/generate", json=BODY | {"size": size, "steps": steps})
            assert answer.status_code == 200, answer.text
            finished.append(size)

        await asyncio.gather(one("1x1", 600), one("2x2", 5), one("3x2", 5))

    ask(backend, scenario, limits={"steps": 600})
    assert finished[-1] == "1x1"


def test_a_stream_that_fails_half_way_ends_with_an_error_event(backend: InProcess, instant_engine: StepEngine) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("out of memory")

    instant_engine.vae.decode = fail  # after the last step

    async def scenario(client: httpx.AsyncClient) -> str:
        return (await client.post("/v1/generate", json=BODY | {"stream": True, "steps": 3, "partial_images": 0})).text

    events = [line.removeprefix("event: ") for line in ask(backend, scenario).splitlines() if line[:5] == "event"]
    assert events[-1] == "error"
    assert "completed" not in events


def test_every_error_has_the_same_shape(backend: InProcess) -> None:
    backend.absent = ["Decoder updating"]

    async def scenario(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/v1/generate", json=BODY | {"sed": 1}),
            await client.post("/v1/generate", content=b"{", headers={"Content-Type": "application/json"}),
            await client.get("/v1/generate"),
            await client.get("/nothing"),
            await client.post("/v1/generate", json=BODY | {"negative": "x" * 1000}),
            await client.get("/readyz"),
        ]

    answers = ask(backend, scenario, limits={"body_bytes": 500})
    assert [answer.status_code for answer in answers] == [422, 400, 405, 404, 413, 503]
    for answer in answers:
        assert set(answer.json()["error"]) == {"type", "code", "message", "param"}
    assert answers[-1].headers["Retry-After"] == "2"


def test_a_fault_of_ours_keeps_its_details_to_the_log(backend: InProcess, caplog: pytest.LogCaptureFixture) -> None:
    assert "secret" not in json.dumps(ApiError.of(RuntimeError("secret")).body)
    assert "secret" in caplog.text


def test_the_interface_is_the_agreed_one(backend: InProcess) -> None:
    async def scenario(client: httpx.AsyncClient) -> Any:
        return (await client.get("/openapi.json")).json()

    interface = ask(backend, scenario)
    assert {path: sorted(methods) for path, methods in interface["paths"].items()} == {
        "/v1/generate": ["post"],
        "/v1/condition": ["post"],
        "/v1/models": ["get"],
        "/healthz": ["get"],
        "/readyz": ["get"],
    }
    fields = interface["components"]["schemas"]["GenerateRequest"]["properties"]
    expected = {"parts", "negative", "model", "n", "size", "steps", "guidance", "seed", "scheduler", "lora", "control"}
    assert set(fields) == expected | {"format", "stream", "partial_images"}
