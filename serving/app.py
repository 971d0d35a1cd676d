"""The Ray Serve application: ingress -> encoder -> decoder.

`build` is what Ray deploys: `serving.app:build` in a Serve config file, with the settings as arguments, or the object
that `kosmosg serve` creates.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from kosmosg.errors import KosmosGError
from kosmosg.prompt import Prompt
from kosmosg_platform.config import validate
from serving.api.errors import ApiError
from serving.api.http_app import http_app
from serving.config import ServingConfig
from serving.engine.messages import DecoderInfo, EncodedPrompt, Event, ImageRequest

NAME = "kosmosg"
"""Name of the application in Ray Serve."""

logger = logging.getLogger("ray.serve")


def build(args: Mapping[str, Any] | ServingConfig) -> serve.Application:
    """The application for a configuration, which may be plain data as in a preset file. Raises ConfigError."""
    config = args if isinstance(args, ServingConfig) else validate(ServingConfig, args)
    encoding, decoding = config.encoding, config.decoding
    encoder = serve.deployment(
        PromptEncoderReplica,
        name="Encoder",
        num_replicas=encoding.replicas,
        # Two batches: one is computed while the next one fills up.
        max_ongoing_requests=2 * encoding.max_batch_size,
        max_queued_requests=encoding.queue,
        max_constructor_retry_count=1,  # a folder that cannot be loaded will not load on the third attempt either
        ray_actor_options={"num_cpus": encoding.cpus, "num_gpus": encoding.gpus},
    ).bind(
        config.chosen.folder,
        config.precision,
        encoding.max_batch_size,
        encoding.wait_ms,
        encoding.cache,
        threads=max(1, int(encoding.cpus)),
    )
    decoder = serve.deployment(
        ImageDecoderReplica,
        name="Decoder",
        num_replicas=decoding.replicas,
        max_ongoing_requests=decoding.max_concurrent,
        max_queued_requests=decoding.queue,
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": decoding.cpus, "num_gpus": decoding.gpus},
    ).bind(config.decoder, config.precision, decoding.max_batch_rows, threads=max(1, int(decoding.cpus)))
    ingress: serve.Application = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        # It only waits for the others, so it accepts everything; the decoder's queue enforces the limit.
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
    ).bind(config, encoder, decoder)
    return ingress


class PromptEncoderReplica:
    """`serving.replicas.prompt_encoder.BatchedPromptEncoder` in a process of its own.

    The model's libraries are imported only there, so that the deploying process and the ingress stay small and start
    within a second or two.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        from serving.replicas.prompt_encoder import BatchedPromptEncoder

        self._encoder = BatchedPromptEncoder(*args, **settings)

    def about(self) -> tuple[int, int]:
        """See `BatchedPromptEncoder.about`."""
        return self._encoder.about()

    async def encode(self, prompt: Prompt, negative: str | None) -> EncodedPrompt:
        """See `BatchedPromptEncoder.encode`."""
        return await self._encoder.encode(prompt, negative)


class ImageDecoderReplica:
    """`serving.replicas.image_decoder.ImageDecoder` in a process of its own; see `PromptEncoderReplica`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        from serving.replicas.image_decoder import ImageDecoder

        self._decoder = ImageDecoder.load(*args, **settings)

    def about(self) -> tuple[int, int, tuple[str, ...]]:
        """See `ImageDecoder.about`."""
        return self._decoder.about()

    def active(self) -> int:
        """See `ImageDecoder.active`."""
        return self._decoder.active()

    async def generate(self, request: ImageRequest) -> AsyncGenerator[Event]:
        """See `ImageDecoder.generate`."""
        async with aclosing(self._decoder.generate(request)) as events:
            async for event in events:
                yield event


class Ingress:
    """The HTTP routes, backed by the two deployments."""

    def __init__(self, config: ServingConfig, encoder: DeploymentHandle, decoder: DeploymentHandle) -> None:
        self._config = config
        self._encoder = encoder
        self._decoder = decoder
        self._about: DecoderInfo | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        return http_app(self, self._config)

    async def about(self) -> DecoderInfo:
        """Queried once, when both deployments have loaded their weights."""
        if self._about is None:
            if missing := await self.missing():
                raise self._unavailable("starting", f"not ready: {', '.join(missing)}")
            queries, width = await self._encoder.about.remote()
            native_size, size_step, schedulers = await self._decoder.about.remote()
            self._about = DecoderInfo(native_size, size_step, schedulers, queries, width)
        return self._about

    async def missing(self) -> list[str]:
        """Ray's own view of the replicas, which also shows a crash after the start."""
        status = await asyncio.to_thread(serve.status)
        deployments = status.applications[serve.get_replica_context().app_name].deployments
        return [f"{name} {info.status.value.lower()}" for name, info in deployments.items() if info.status != "HEALTHY"]

    async def encode(self, prompt: Prompt, negative: str | None) -> EncodedPrompt:
        """Handled by any replica of the encoder."""
        try:
            encoded: EncodedPrompt = await self._encoder.encode.remote(prompt, negative)
        except (KosmosGError, RayError, BackPressureError, DeploymentUnavailableError) as error:
            raise self._as_answer(error, self._config.encoding.queue) from error
        return encoded

    async def generate(self, request: ImageRequest) -> AsyncGenerator[Event]:
        """Handled by any replica of the decoder; closing this generator cancels the call there."""
        response = self._decoder.options(stream=True).generate.remote(request)
        try:
            async for event in response:
                yield event
        except (KosmosGError, RayError, BackPressureError, DeploymentUnavailableError) as error:
            raise self._as_answer(error, self._config.decoding.queue) from error
        except (GeneratorExit, asyncio.CancelledError):
            # The client disconnected. (Never cancel a call that was rejected: Ray raises the rejection again.)
            response.cancel()
            raise

    def _as_answer(self, error: Exception, queue: int) -> Exception:
        """Translates a failed call into an error for the client."""
        if isinstance(error, BackPressureError):
            return ApiError(
                429,
                "queue_full",
                f"{queue} requests are already waiting, which is the limit; try again later",
                retry_after=self._config.retry_after,
            )
        if isinstance(error, RayActorError | DeploymentUnavailableError):
            logger.error("a replica was lost", exc_info=error)
            return self._unavailable("replica_lost", "the replica that was handling this request was lost; try again")
        return ApiError.of(error)

    def _unavailable(self, code: str, message: str) -> ApiError:
        return ApiError(503, code, message, retry_after=self._config.retry_after)
