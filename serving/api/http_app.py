"""The HTTP application: all routes over one backend, with errors and middleware. Independent of Ray."""

from fastapi import FastAPI

import kosmosg
from serving.api import health, models, native
from serving.api.backend import Backend
from serving.api.errors import ApiError, install
from serving.config import ServingConfig
from serving.middleware.body_limit import BodyLimit


def http_app(backend: Backend, config: ServingConfig) -> FastAPI:
    """The routes over a backend."""
    app = FastAPI(
        title="Kosmos-G",
        version=kosmosg.__version__,
        description="Image generation from prompts that mix text and images.",
    )
    limit = config.limits.body_bytes
    too_large = ApiError(413, "body_too_large", f"the request is larger than the limit of {limit} bytes")
    app.add_middleware(BodyLimit, limit=limit, refusal=too_large.response())
    install(app)
    for part in (native, models, health):
        app.include_router(part.routes(backend, config))
    return app
