"""Errors in the format that OpenAI's clients understand: {"error": {"type", "code", "message", "param"}}."""

import logging
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from kosmosg.errors import KosmosGError

logger = logging.getLogger(__name__)

TYPES = {404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 503: "unavailable_error"}


class ApiError(Exception):
    """An error response. `retry_after` is in seconds."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @classmethod
    def of(cls, error: BaseException) -> "ApiError":
        """Any exception as an error response: user errors keep their message, internal errors go to the log."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, KosmosGError):
            kind = next((kind for kind in type(error).__mro__ if kind.__module__ == "kosmosg.errors"), KosmosGError)
            code = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
            return cls(422, code, _sentence(error))
        logger.error("a request failed", exc_info=error)
        return cls(500, "internal_error", "the request failed on the server; the error is in its log")

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"type": kind, "code": self.code, "message": self.message, "param": self.param}}

    def response(self) -> JSONResponse:
        """The HTTP response."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else None
        return JSONResponse(self.body, self.status, headers)


def install(app: FastAPI) -> None:
    """Return every error of the app in that format."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, "invalid_json", f"the body is not JSON: {first['ctx']['error']}").response()
        # The first element says where it was ("body"); the path also contains the tags of unions, which helps.
        param = ".".join(str(part) for part in first["loc"][1:])
        reason = "there is no such field" if first["type"] == "extra_forbidden" else first["msg"]
        message = f"{param or 'body'}: {reason[0].lower()}{reason[1:]}"
        return ApiError(422, first["type"], message, param or None).response()

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        code, message = {
            404: ("not_found", f"there is no {path}; see /openapi.json"),
            405: ("method_not_allowed", f"{path} does not take {request.method}; see /openapi.json"),
        }.get(error.status_code, ("refused", str(error.detail)))
        return ApiError(error.status_code, code, message).response()

    @app.exception_handler(ApiError)
    @app.exception_handler(KosmosGError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return ApiError.of(error).response()


def _sentence(error: BaseException) -> str:
    """Only the message: the text of an error that crossed processes includes the remote traceback."""
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, BaseException) else error)
