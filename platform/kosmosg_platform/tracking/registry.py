"""Model names of the form `models:/NAME@ALIAS` or `models:/NAME/VERSION`: what MLflow's registry has under them.

Known to `kosmosg.hub`, so they work wherever a model is named: settings, command line, endpoint.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kosmosg.errors import CheckpointError

_CHOSEN: list[str] = []
_USUAL = "runs/mlflow.db"
_DOWNLOAD_SECONDS = "120"  # of silence


def look_in(uri: str) -> None:
    """The store that names mean from now on, in this process, where MLFLOW_TRACKING_URI is not set."""
    _CHOSEN[:] = [uri]


def fetch_model(name: str) -> Path:
    """The export folder of `models:/...`: the files themselves where they are on this machine, else a copy of them.

    Raises CheckpointError if there is no such model, or the store cannot be reached.
    """
    usual = f"sqlite:///{Path(_USUAL).absolute()}" if Path(_USUAL).is_file() else ""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (_CHOSEN[0] if _CHOSEN else usual)
    if not uri:
        raise CheckpointError(
            f"there is no model {name!r}: no MLflow store is known; set MLFLOW_TRACKING_URI, or start where {_USUAL} is"
        )
    from mlflow.exceptions import MlflowException

    from kosmosg_platform.tracking.mlflow_run import client

    api = client(uri)
    try:
        version = _version(api, name)
        location = api.get_model_version_download_uri(version.name, version.version)
        if location.startswith("models:/"):
            location = api.get_logged_model(location.removeprefix("models:/")).artifact_location
        place = urlsplit(location)
        if place.scheme in ("", "file") and Path(unquote(place.path)).is_dir():
            return Path(unquote(place.path))
        return _download(location, uri)
    except (MlflowException, OSError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"there is no model {name!r} in {uri} ({text}); see its page Models") from error


def _version(api: Any, name: str) -> Any:
    path = name.removeprefix("models:").strip("/")
    model, at, alias = path.partition("@")
    if at:
        return api.get_model_version_by_alias(model, alias)
    model, slash, version = path.partition("/")
    if slash and version != "latest":
        return api.get_model_version(model, version)
    found = api.search_model_versions(f"name = '{model}'", order_by=["version_number DESC"], max_results=1)
    if not found:
        raise CheckpointError(f"there is no model {name!r}; nothing is registered as {model!r}")
    return found[0]


def _download(location: str, uri: str) -> Path:
    """A copy in the cache; a version never changes, so it is fetched once."""
    from mlflow.artifacts import download_artifacts

    cache = Path(os.environ.get("KOSMOSG_CACHE", Path.home() / ".cache" / "kosmosg")) / "models"
    folder = cache / f"mlflow-{hashlib.sha256(f'{uri} {location}'.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = _DOWNLOAD_SECONDS
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
    try:
        found = Path(download_artifacts(artifact_uri=location, dst_path=str(draft), tracking_uri=uri, registry_uri=uri))
        if not folder.is_dir():  # another process may have been faster
            os.replace(found, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
