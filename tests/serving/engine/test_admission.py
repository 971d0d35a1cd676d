"""Requests come and go while the engine computes: none is lost, doubled or starved, and a place is freed at once."""

import asyncio
import random
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from serving.engine import step_engine
from serving.engine.messages import Finished, ImageRequest
from serving.engine.step_engine import StepEngine
from serving.replicas.image_decoder import ImageDecoder

QUERIES, WIDTH = 2, 4


def request(seed: int = 0, side: int = 1, steps: int = 3) -> ImageRequest:
    nothing = np.zeros((QUERIES, WIDTH), np.float32)
    return ImageRequest(nothing, nothing, (seed,), height=side, width=side, steps=steps, guidance=1.0)


def test_a_request_admitted_at_any_moment_of_a_tick_is_finished_once(instant_engine: StepEngine) -> None:
    """Another thread admits a request at every instruction that the engine executes during a tick."""
    admitted, clients, moments = [instant_engine.admit(request())], [], set()

    def arrive(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != step_engine.__file__:
            return None
        frame.f_trace_opcodes = True
        moment = (frame.f_code, frame.f_lasti)
        if event == "opcode" and moment not in moments:
            moments.add(moment)
            clients.append(threading.Thread(target=lambda: admitted.append(instant_engine.admit(request()))))
            clients[-1].start()
            clients[-1].join(timeout=0.01)  # no longer: the engine may let it wait
        return arrive

    tracer = sys.gettrace()
    sys.settrace(arrive)
    events = instant_engine.tick()
    sys.settrace(tracer)
    for client in clients:
        client.join()
    while instant_engine.active:
        events += instant_engine.tick()
    finished = Counter(id(who) for who, event in events if isinstance(event, Finished))
    assert len(admitted) == 1 + len(clients) > 20
    assert finished == {id(who): 1 for who in admitted}


@pytest.mark.parametrize("seed", range(3))
def test_each_client_gets_its_own_images_whoever_else_gives_up(instant_engine: StepEngine, seed: int) -> None:
    """Clients of the decoder arrive in bursts, some close their stream half-way, at sizes and lengths of their own."""
    rng = random.Random(seed)

    decoder = ImageDecoder(instant_engine)

    async def client(number: int) -> tuple[int, list[str]]:
        await asyncio.sleep(rng.random() / 20)
        asked = request(seed=number, side=1 + number % 3, steps=1 + number % 5)
        events, patience = [], rng.choice([1, 2, 99])
        stream = decoder.generate(asked)
        async for event in stream:
            events.append(type(event).__name__)
            if isinstance(event, Finished):
                assert event.images.shape == (1, asked.height, asked.width, 3)
            if len(events) == patience:
                await stream.aclose()
                break
        return patience, events

    async def everybody() -> list[tuple[int, list[str]]]:
        clients = await asyncio.wait_for(asyncio.gather(*map(client, range(60))), timeout=60)
        assert decoder.active() == 0
        return clients

    for number, (patience, events) in enumerate(asyncio.run(everybody())):
        whole = ["DenoisingProgress"] * (1 + number % 5) + ["Finished"]
        assert events == whole[:patience]


def test_a_client_that_goes_away_frees_its_place_within_one_step(instant_engine: StepEngine) -> None:
    """In a batch of one row: a request that waits behind another gets the call after the one in which it left."""
    calls: list[int] = []

    class Counting(type(instant_engine.unet)):
        def forward(self, latents: Tensor, *inputs: Tensor, **options: object) -> tuple[Tensor]:
            calls.append(len(latents))
            return super().forward(latents)

    async def scenario() -> int:
        decoder = ImageDecoder(StepEngine(Counting(), instant_engine.vae, instant_engine.scheduler, max_batch_rows=1))
        leaver, waiting = decoder.generate(request(steps=900)), decoder.generate(request(steps=900))
        await anext(leaver)
        first = asyncio.ensure_future(anext(waiting))
        await anext(leaver)
        assert not first.done()
        await leaver.aclose()
        assert decoder.active() == 1
        before = len(calls)
        await first
        await waiting.aclose()
        return len(calls) - before

    assert asyncio.run(scenario()) <= 3, "the call under way, its own, and one that began meanwhile"


def test_a_failing_step_fails_its_own_batch_only(instant_engine: StepEngine) -> None:
    """A U-Net call that runs out of memory ends the requests in it; others continue."""

    class Fragile(type(instant_engine.unet)):
        def forward(self, latents: Tensor, *inputs: Tensor, **options: object) -> tuple[Tensor]:
            if latents.shape[-1] == 2:
                raise RuntimeError("out of memory")
            return super().forward(latents)

    async def scenario() -> list[object]:
        decoder = ImageDecoder(StepEngine(Fragile(), instant_engine.vae, instant_engine.scheduler, max_batch_rows=4))

        async def ask(side: int) -> object:
            async for event in decoder.generate(request(side=side, steps=4)):
                last = event
            return last

        return await asyncio.gather(ask(1), ask(2), ask(1), return_exceptions=True)

    first, failed, second = asyncio.run(scenario())
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert isinstance(failed, RuntimeError)
