"""What the routes need from a backend; in `serving/app.py` that is Ray Serve's deployments."""

from collections.abc import AsyncGenerator
from typing import Protocol

from kosmosg.prompt import Prompt
from serving.engine.messages import DecoderInfo, EncodedPrompt, Event, ImageRequest


class Backend(Protocol):
    """What the routes need. Every method raises ApiError or a KosmosGError with a message for the client."""

    async def about(self) -> DecoderInfo:
        """Describes the loaded model; 503 until it is loaded."""

    async def missing(self) -> list[str]:
        """Which deployments are not ready; empty if all are."""

    async def encode(self, prompt: Prompt, negative: str | None) -> EncodedPrompt:
        """Encode a prompt as a condition; 429 if too many requests are waiting."""

    def generate(self, request: ImageRequest) -> AsyncGenerator[Event]:
        """Events of a request, the last of which is `Finished`; closing it early frees its slot; 429 if full."""
