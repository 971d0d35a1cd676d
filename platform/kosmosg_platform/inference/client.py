"""A client for the endpoint, and a server that runs for the duration of a `with` block.

The client uses only HTTP, so it works from a machine that has neither the checkout nor the model.
"""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from PIL import Image

from kosmosg.errors import ConfigError, KosmosGError
from kosmosg.prompt import Prompt
from kosmosg_platform.cluster import workspace

START_SECONDS = 300.0
"""How long a server may take until its weights are loaded; a cold start of Ray on a busy laptop takes a minute."""


class EndpointError(KosmosGError):
    """The endpoint rejected a request or failed; the message is the endpoint's."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"the endpoint answered {status}: {message}")
        self.status = status
        self.code = code
        self.retry_after = retry_after  # seconds, when the endpoint is full or starting


@dataclass(frozen=True)
class Generated:
    """Images with their seeds, and the whole response (`usage`, `timings`, ...)."""

    images: list[Image.Image]
    seeds: list[int]
    answer: dict[str, Any]


class Client:
    """Calls one endpoint.

    >>> with Client("http://127.0.0.1:8000") as client:                        # doctest: +SKIP
    ...     image = client.generate(Prompt("<i> at sea", images=[cat]), seed=1).images[0]

    Args:
        url: where the endpoint listens.
        timeout: seconds that one response may take.
    """

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url: {url!r} is not the address of an endpoint; write http://host:port")
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def generate(self, prompt: Prompt, **settings: Any) -> Generated:
        """`POST /v1/generate`; settings are its fields (`n`, `size`, `steps`, `guidance`, `seed`, ...)."""
        return _generated(self._post("/v1/generate", _request(prompt, settings)))

    def stream(self, prompt: Prompt, **settings: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """The same as server-sent events: (`progress` | `partial_image` | `completed`, data), as they come."""
        body = _request(prompt, settings) | {"stream": True}
        with self._answering(), self._http.stream("POST", "/v1/generate", json=body) as response:
            if response.is_error:
                response.read()
                raise _refusal(response)
            event = ""
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    data = json.loads(value)
                    if event == "error":
                        raise EndpointError(response.status_code, data["error"]["code"], data["error"]["message"])
                    yield event, data

    def condition(self, prompt: Prompt, negative: str | None = None) -> dict[str, Any]:
        """`POST /v1/condition`: the response, with `positive` and `negative` as nested lists."""
        settings = {"negative": negative, "encoding_format": "float"}
        return self._post("/v1/condition", _request(prompt, settings))

    def models(self) -> list[dict[str, Any]]:
        """The served models, with defaults and limits."""
        with self._answering():
            response = self._http.get("/v1/models")
        if response.is_error:
            raise _refusal(response)
        return list(response.json()["data"])

    def ready(self) -> bool:
        """Whether the endpoint is up and has loaded its weights."""
        try:
            return self._http.get("/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._answering():
            response = self._http.post(path, json=body)
        if response.is_error:
            raise _refusal(response)
        return dict(response.json())

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise ConfigError(
                f"url: {self.url} did not answer ({type(error).__name__}); `kosmosg serve` starts an endpoint"
            ) from None


@contextmanager
def serving(words: Sequence[str], log: Path, port: int | None = None, address: str | None = None) -> Iterator[Client]:
    """`kosmosg serve WORDS` in another process: ready when the block begins, stopped after it.

    Args:
        words: preset and `key=value` settings, such as `["toyworld", "model=runs/demo/instruct/export"]`.
        log: file for the server's output.
        port: port to listen on; None takes a free one.
        address: Ray cluster to deploy on; None lets the server start one.

    Raises ConfigError with the server's own message if it does not come up.
    """

    root = workspace.find()
    port = port or _free_port()
    options = ["--port", str(port), *(["--address", address] if address else [])]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "serving", *words, *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=workspace.environment(root),
            start_new_session=True,  # Ctrl-C is for the caller, who then shuts the server down
        )
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + START_SECONDS
            while not client.ready():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise ConfigError(f"the endpoint did not start: {_last_line(log)} (all of it: {log})")
                time.sleep(0.3)
            yield client
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End it with SIGTERM, so that Ray stops its processes; if that takes too long, SIGKILL the whole process group."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _request(prompt: Prompt, settings: dict[str, Any]) -> dict[str, Any]:
    """The prompt as content parts; settings that are None are omitted."""
    parts: list[dict[str, Any]] = []
    for part in prompt.parts:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            buffer = io.BytesIO()
            part.save(buffer, format="PNG")
            url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
            parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"parts": parts or [{"type": "text", "text": ""}]} | {k: v for k, v in settings.items() if v is not None}


def _generated(answer: dict[str, Any]) -> Generated:
    images = [Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).convert("RGB") for item in answer["data"]]
    return Generated(images, [item["seed"] for item in answer["data"]], answer)


def _refusal(response: httpx.Response) -> EndpointError:
    retry = response.headers.get("Retry-After")
    seconds = float(retry) if retry and retry.isdigit() else None
    try:
        error = response.json()["error"]
        return EndpointError(response.status_code, str(error["code"]), str(error["message"]), seconds)
    except (ValueError, KeyError, TypeError):
        # Not our endpoint's shape: a proxy in between, or another server at this address.
        return EndpointError(response.status_code, "unknown", response.text.strip()[:200] or "no reason given", seconds)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
