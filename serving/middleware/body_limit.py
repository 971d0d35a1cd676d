"""Limits the size of request bodies."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: a body of more than `limit` bytes gets the response `refusal` and is never read completely
    into memory."""

    def __init__(self, app: ASGIApp, limit: int, refusal: ASGIApp) -> None:
        self.app = app
        self.limit = limit
        self.refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        messages: list[Message] = []
        size = int(declared) if declared.isdigit() else 0
        more = size <= self.limit
        received = 0
        while more:
            messages.append(await receive())
            received += len(messages[-1].get("body", b""))
            size = max(size, received)
            more = messages[-1].get("more_body", False) and size <= self.limit
        if size > self.limit:
            await self.refusal(scope, receive, send)
            return
        messages.reverse()

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replayed, send)
