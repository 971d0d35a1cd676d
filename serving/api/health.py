"""`/healthz` and `/readyz`: what a load balancer asks."""

from fastapi import APIRouter

from serving.api.backend import Backend
from serving.api.errors import ApiError
from serving.config import ServingConfig


def routes(backend: Backend, config: ServingConfig) -> APIRouter:
    """The routes over a backend."""
    router = APIRouter(tags=["server"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers. Says nothing about models: see /readyz."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        """200 when every part is up and has its weights, 503 before."""
        missing = await backend.missing()
        if missing:
            raise ApiError(503, "starting", f"not ready: {', '.join(missing)}", retry_after=config.retry_after)
        return {"status": "ready"}

    return router
