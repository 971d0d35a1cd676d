"""An export as a model of MLflow: loadable by `mlflow.pyfunc.load_model`, and a version of a registered model.

The export folder itself becomes the model: a file `MLmodel` beside its weights says how to load it. So what MLflow
hands out under `models:/NAME@ALIAS` is an export like any other. With a store on this machine its files are linked, not
copied.
"""

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kosmosg.errors import CheckpointError

CANDIDATE, CHAMPION = "candidate", "champion"
KEY_TAG = "kosmosg.export"
LOADER = "kosmosg_platform.tracking.pyfunc_model"
_UPLOAD_SECONDS = 600  # for one file: a server may pass it on before it answers


def log_model(api: Any, run_id: str, entry: Mapping[str, Any]) -> None:
    """Log the export at `entry["path"]` and register it; what an earlier try has done is not done again."""
    run = api.get_run(run_id)
    export, name, tags = Path(entry["path"]), entry["model"], {**entry["tags"], KEY_TAG: entry["key"]}
    logged = _logged(api, run.info.experiment_id, run_id, entry["key"])
    if logged is None:
        logged = api.create_logged_model(run.info.experiment_id, name=name, source_run_id=run_id, tags=tags)
    if str(logged.status) != "READY":
        write_mlmodel(export, run_id, logged.model_id)
        _store(api, logged, export)
        logged = api.finalize_logged_model(logged.model_id, "READY")
        _link_to_run(api, run_id, logged.model_id)
    _register(api, run_id, logged, entry, tags)


def write_mlmodel(export: Path, run_id: str = "", model_id: str = "") -> None:
    """Write `MLmodel` and the requirements beside the weights of an export."""
    from mlflow import pyfunc
    from mlflow.models import Model

    from kosmosg_platform.tracking.pyfunc_model import signature

    model = Model(run_id=run_id or None, model_id=model_id or None, signature=signature())
    pyfunc.add_to_model(model, loader_module=LOADER, python_env="python_env.yaml")
    (export / "requirements.txt").write_text("\n".join(_requirements()) + "\n")
    (export / "python_env.yaml").write_text("dependencies:\n- -r requirements.txt\n")
    partial = export / ".MLmodel"
    model.save(str(partial))
    partial.replace(export / "MLmodel")


def _requirements() -> list[str]:
    found = []
    for package in ("kosmosg", "torch", "transformers", "diffusers", "safetensors", "sentencepiece"):
        try:
            found.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            found.append(package)
    return found


def _logged(api: Any, experiment: str, run_id: str, key: str) -> Any | None:
    """The model that this run has logged for this export."""
    for model in api.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'"):
        if model.tags.get(KEY_TAG) == key:
            return model
    return None


def _store(api: Any, logged: Any, export: Path) -> None:
    place = urlsplit(logged.artifact_location)
    if place.scheme in ("", "file"):
        _link(export, Path(unquote(place.path)))
        return
    usual = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(_UPLOAD_SECONDS)
    try:
        api.log_model_artifacts(logged.model_id, str(export))
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = usual


def _link(source: Path, target: Path) -> None:
    """The files of a folder under another name, without a second copy where the file system has hard links."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(file, place)
        except OSError:  # another file system
            shutil.copy2(file, place)


def _link_to_run(api: Any, run_id: str, model_id: str) -> None:
    from mlflow.entities import LoggedModelOutput

    api.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def _register(api: Any, run_id: str, logged: Any, entry: Mapping[str, Any], tags: dict[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    name = entry["model"]
    try:
        registered = api.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        registered = api.create_registered_model(name, description=entry["description"] or None)
    known = [one for one in api.search_model_versions(f"name = '{name}'") if one.tags.get(KEY_TAG) == entry["key"]]
    mine = [one for one in known if one.run_id == run_id]
    found = mine[0] if mine else None
    if found is None:
        # A source of the form models:/ID would be looked up in the process's global store, not in this one.
        place = logged.artifact_location
        found = api.create_model_version(name, place, run_id, tags=tags, model_id=logged.model_id, await_creation_for=0)
    api.set_registered_model_alias(name, CANDIDATE, found.version)
    if CHAMPION not in registered.aliases:
        api.set_registered_model_alias(name, CHAMPION, found.version)


def promote(api: Any, name: str, chosen: str) -> str:
    """Give a version of a registered model, or the one with an alias, the alias `champion`; returns the version.

    Raises CheckpointError if there is none.
    """
    from mlflow.exceptions import MlflowException

    try:
        get = api.get_model_version if chosen.isdigit() else api.get_model_version_by_alias
        found = get(name, chosen)
    except MlflowException as error:
        raise CheckpointError(f"there is no version or alias {chosen!r} of the model {name!r}") from error
    api.set_registered_model_alias(name, CHAMPION, found.version)
    return str(found.version)
