"""The routes of this project's own API: `/v1/generate` and `/v1/condition`."""

import asyncio
import base64
import io
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from kosmosg.prompt import Prompt
from serving.api.backend import Backend
from serving.api.errors import ApiError
from serving.api.resolve import ResolvedRequest, read_prompt, resolve_request
from serving.api.schema import (
    REFUSALS,
    STREAM,
    ConditionRequest,
    ConditionResponse,
    Embedding,
    GenerateRequest,
    GenerateResponse,
    ImageData,
    Timings,
    Usage,
)
from serving.api.sse import server_sent_event
from serving.config import ServingConfig
from serving.engine.messages import (
    DenoisingProgress,
    Embeddings,
    EncodedPrompt,
    Event,
    Finished,
    ImageArray,
    ImageRequest,
    Preview,
)


def routes(backend: Backend, config: ServingConfig) -> APIRouter:
    """The routes over a backend."""
    router = APIRouter(tags=["images"])

    @router.post("/v1/generate", response_model=GenerateResponse, responses=STREAM | REFUSALS)
    async def generate(request: GenerateRequest) -> Response:
        """Generate images from ordered text and images; with `stream` as server-sent events."""
        began = time.perf_counter()
        resolved = resolve_request(request, config, await backend.about())
        # Decoding large images would block the events of other requests.
        prompt = await asyncio.to_thread(read_prompt, request, config)
        encoded = await backend.encode(prompt, request.negative)
        answer = _Answer(request, config.name, prompt, encoded, resolved, began)
        events = backend.generate(answer.image_request)
        # The first event means that the request was accepted; until then, a rejection is still a plain HTTP response.
        first = await anext(events)
        if request.stream:
            stream = _stream(answer, first, events)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        last = first
        async with aclosing(events):
            async for event in events:
                last = event
        if not isinstance(last, Finished):
            raise ApiError(500, "internal_error", "the decoder ended without an image")
        return JSONResponse((await answer.completed(last)).model_dump())

    @router.post("/v1/condition", responses=REFUSALS)
    async def condition(request: ConditionRequest) -> ConditionResponse:
        """The embeddings that Stable Diffusion 1.5 takes as `prompt_embeds`, for users with a U-Net of their own."""
        await backend.about()
        prompt = await asyncio.to_thread(read_prompt, request, config)
        encoded = await backend.encode(prompt, request.negative)
        return ConditionResponse(
            id=_identifier("cond"),
            model=config.name,
            positive=_embedding(encoded.positive, request.encoding_format),
            negative=_embedding(encoded.negative, request.encoding_format),
            usage={"prompt_tokens": encoded.tokens, "input_images": len(prompt.images), "cached": encoded.cached},
        )

    return router


class _Answer:
    """The response to one request, while it is being produced."""

    def __init__(
        self,
        request: GenerateRequest,
        model: str,
        prompt: Prompt,
        encoded: EncodedPrompt,
        resolved: ResolvedRequest,
        began: float,
    ) -> None:
        self.request = request
        self.model = model
        self.prompt = prompt
        self.encoded = encoded
        self.resolved = resolved
        self.began = began
        self.encode_seconds = time.perf_counter() - began

    @property
    def image_request(self) -> ImageRequest:
        """The request for the decoder."""
        return ImageRequest(
            positive=self.encoded.positive,
            negative=self.encoded.negative,
            seeds=self.resolved.seeds,
            height=self.resolved.height,
            width=self.resolved.width,
            steps=self.resolved.steps,
            guidance=self.resolved.guidance,
            scheduler=self.resolved.scheduler,
            previews=self.resolved.previews,
        )

    async def event(self, event: Event) -> str:
        """An event of the decoder as server-sent events."""
        if isinstance(event, DenoisingProgress):
            return server_sent_event("progress", {"step": event.step, "steps": event.steps})
        if isinstance(event, Preview):
            at = {"step": event.step, "steps": event.steps}
            encoded = await self.encoded_images(event.images)
            return "".join(
                server_sent_event("partial_image", {**at, "index": i, "b64_json": data})
                for i, data in enumerate(encoded)
            )
        return server_sent_event("completed", (await self.completed(event)).model_dump())

    async def completed(self, event: Finished) -> GenerateResponse:
        """The complete response."""
        encoded = await self.encoded_images(event.images)
        total = time.perf_counter() - self.began
        return GenerateResponse(
            id=_identifier("gen"),
            created=int(time.time()),
            model=self.model,
            data=[ImageData(b64_json=data, seed=seed) for data, seed in zip(encoded, self.resolved.seeds, strict=True)],
            usage=Usage(
                prompt_tokens=self.encoded.tokens,
                input_images=len(self.prompt.images),
                output_images=len(encoded),
                unet_rows=event.evaluations,
                cached=self.encoded.cached,
            ),
            timings=Timings(
                encode=round(self.encode_seconds, 4),
                draw=round(total - self.encode_seconds, 4),
                total=round(total, 4),
            ),
        )

    async def encoded_images(self, images: ImageArray) -> list[str]:
        """Each image in the requested format, as Base64."""
        return await asyncio.to_thread(lambda: [_base64(image, self.request.format) for image in images])


async def _stream(answer: _Answer, first: Event, events: AsyncGenerator[Event]) -> AsyncIterator[str]:
    """Server-sent events; errors become events too, because the status has already been sent."""
    try:
        async with aclosing(events):  # a client that disconnects frees its slot
            yield await answer.event(first)
            async for event in events:
                yield await answer.event(event)
    except Exception as error:  # noqa: BLE001 - becomes an answer; `ApiError.of` logs what is a fault of ours
        yield server_sent_event("error", ApiError.of(error).body)


def _base64(image: ImageArray, kind: str) -> str:
    buffer = io.BytesIO()
    quality = {} if kind == "png" else {"quality": 92}
    Image.fromarray(image).save(buffer, format=kind.upper(), **quality)
    return base64.b64encode(buffer.getvalue()).decode()


def _embedding(condition: Embeddings, kind: str) -> Embedding:
    values = condition.astype("<f4")
    data = values.tolist() if kind == "float" else base64.b64encode(values.tobytes()).decode()
    return Embedding(shape=list(values.shape), data=data)


def _identifier(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:20]}"
