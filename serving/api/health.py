"""`/healthz` and `/readyz`, for load balancers."""

from fastapi import APIRouter

from serving.api.backend import Backend
from serving.api.errors import ApiError
from serving.config import ServingConfig


def routes(backend: Backend, config: ServingConfig) -> APIRouter:
    """The routes over a backend."""
    router = APIRouter(tags=["server"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Liveness: the process responds. For models, see /readyz."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Readiness: 200 if every deployment is up and has loaded its weights, else 503."""
        missing = await backend.missing()
        if missing:
            raise ApiError(503, "starting", f"not ready: {', '.join(missing)}", retry_after=config.retry_after)
        return {"status": "ready"}

    return router
