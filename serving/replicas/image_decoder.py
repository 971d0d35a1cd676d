"""The decoder deployment: a step engine, and a stream of events for each request."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

import torch

from kosmosg.diffusion.components import NEEDED, decoder_parts
from kosmosg.diffusion.schedulers import SCHEDULERS
from serving.engine.messages import Event, Finished, ImageRequest
from serving.engine.step_engine import ActiveRequest, StepEngine
from serving.replicas.prompt_encoder import DTYPES, device


class ImageDecoder:
    """Runs a step engine while there are requests."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine
        self._inboxes: dict[ActiveRequest, asyncio.Queue[Event | Exception]] = {}
        self._running: asyncio.Task[None] | None = None

    @classmethod
    def load(cls, source: str, precision: str, max_batch_rows: int, threads: int) -> Self:
        """Load U-Net, VAE and scheduler of a decoder.

        Args:
            source: name of a shipped decoder, or a folder or Hub id of a Stable Diffusion 1.x pipeline.
            precision: a key of `serving.replicas.prompt_encoder.DTYPES`.
            max_batch_rows: rows of one U-Net call.
            threads: CPU threads of one call.
        """
        torch.set_num_threads(threads)
        parts = decoder_parts(source, NEEDED)
        unet, vae = (parts[name].to(device(), DTYPES[precision]).requires_grad_(False) for name in ("unet", "vae"))
        return cls(StepEngine(unet, vae, parts["scheduler"], max_batch_rows))

    def about(self) -> tuple[int, int, tuple[str, ...]]:
        """Native pixels per side, the step of sizes, and the names of the schedulers."""
        return self._engine.native_size, self._engine.size_step, tuple(SCHEDULERS)

    def active(self) -> int:
        """Number of requests in progress."""
        return self._engine.active

    async def generate(self, request: ImageRequest) -> AsyncGenerator[Event]:
        """The events of a request. Closing the generator removes the request before the next step."""
        admitted = self._engine.admit(request)
        inbox = self._inboxes[admitted] = asyncio.Queue()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        try:
            while True:
                event = await inbox.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._engine.leave(admitted)
            self._inboxes.pop(admitted, None)

    async def _run(self) -> None:
        while self._engine.active:
            # In a thread, so that requests can arrive, finish and be cancelled while the U-Net computes.
            for admitted, event in await asyncio.to_thread(self._engine.tick):
                inbox = self._inboxes.get(admitted)
                if inbox is not None:  # it may have left during the step
                    inbox.put_nowait(event)
