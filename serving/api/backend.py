"""What the routes ask of whoever computes; `serving/app.py` puts Ray Serve's deployments there."""

from collections.abc import AsyncGenerator
from typing import Protocol

from kosmosg.prompt import Prompt
from serving.engine.messages import DecoderInfo, EncodedPrompt, Event, ImageRequest


class Backend(Protocol):
    """What the routes need. Every method raises ApiError or a KosmosGError for what the client should read."""

    async def about(self) -> DecoderInfo:
        """What is loaded; 503 as long as it is not."""

    async def missing(self) -> list[str]:
        """Which parts are not ready; empty when all are."""

    async def encode(self, prompt: Prompt, negative: str | None) -> EncodedPrompt:
        """A prompt as a condition; 429 when too many wait."""

    def generate(self, request: ImageRequest) -> AsyncGenerator[Event]:
        """Events of a request, the last of which is `Finished`; closing it early frees its place; 429 when full."""
