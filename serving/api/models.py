"""`/v1/models`: the served model, its defaults and its limits."""

import time

from fastapi import APIRouter

from serving.api.backend import Backend
from serving.api.schema import ModelCard, ModelList
from serving.config import ServingConfig


def routes(backend: Backend, config: ServingConfig) -> APIRouter:
    """The route over a backend."""
    router = APIRouter(tags=["server"])
    started = int(time.time())

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The served model, its defaults, and the limits for requests."""
        about = await backend.about()
        card = ModelCard(
            id=config.name,
            created=started,
            size=f"{about.native_size}x{about.native_size}",
            size_step=about.size_step,
            condition=[about.queries, about.width],
            schedulers=list(about.schedulers),
            defaults=config.defaults.model_dump(),
            limits=config.limits.model_dump(),
        )
        return ModelList(data=[card])

    return router
