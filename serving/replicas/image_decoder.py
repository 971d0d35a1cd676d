"""The decoder deployment: a step engine, and for each request the events that concern it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import torch

from kosmosg.diffusion.components import NEEDED, decoder_parts
from kosmosg.diffusion.schedulers import SCHEDULERS
from serving.engine.messages import Event, Finished, ImageRequest
from serving.engine.step_engine import ActiveRequest, StepEngine
from serving.replicas.prompt_encoder import DTYPES, device


class ImageDecoder:
    """Runs the engine as long as there are orders.

    Args:
        source: `toyworld`, or a folder or hub id of a Stable Diffusion 1.x pipeline.
        precision: a key of `serving.replicas.prompt_encoder.DTYPES`.
        rows: rows of one U-Net call.
        threads: CPU threads of one call.
    """

    def __init__(self, source: str, precision: str, rows: int, threads: int) -> None:
        torch.set_num_threads(threads)
        parts = decoder_parts(source, NEEDED)
        unet, vae = (parts[name].to(device(), DTYPES[precision]).requires_grad_(False) for name in ("unet", "vae"))
        self._engine = StepEngine(unet, vae, parts["scheduler"], rows)
        self._inboxes: dict[ActiveRequest, asyncio.Queue[Event | Exception]] = {}
        self._running: asyncio.Task[None] | None = None

    def about(self) -> tuple[int, int, tuple[str, ...]]:
        """Native pixels per side, what sizes are multiples of, and the schedulers by name."""
        return self._engine.native_size, self._engine.size_step, tuple(SCHEDULERS)

    def active(self) -> int:
        """Orders under way."""
        return self._engine.active

    async def draw(self, order: ImageRequest) -> AsyncGenerator[Event]:
        """The events of an order. A consumer that goes away takes its order out at the next step."""
        sampling = self._engine.admit(order)
        inbox = self._inboxes[sampling] = asyncio.Queue()
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
            self._engine.leave(sampling)
            self._inboxes.pop(sampling, None)

    async def _run(self) -> None:
        while self._engine.active:
            try:
                # In a thread: here requests come, go and are cancelled while the U-Net computes.
                told: list[tuple[ActiveRequest, Any]] = await asyncio.to_thread(self._engine.tick)
            except Exception as error:  # noqa: BLE001 - out of memory, say: everybody in the engine is told
                told = [(sampling, error) for sampling in self._inboxes]
                for sampling in self._inboxes:
                    self._engine.leave(sampling)
            for sampling, event in told:
                # Whoever left during the step has no inbox any more.
                with contextlib.suppress(KeyError):
                    self._inboxes[sampling].put_nowait(event)
