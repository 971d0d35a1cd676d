"""Resolves model names to folders.

A model is named in one of five ways, everywhere: in Python, in settings, on the command line and for an endpoint.

    toyworld:instruct                  a model that a plug-in ships (`MODELS`)
    runs/instruct/export               a folder
    s3://bucket/models/mine            a URL: s3, gs, hdfs, file; hf://OWNER/NAME and https://huggingface.co/OWNER/NAME
    OWNER/NAME                         an id of the Hugging Face Hub
    models:/kosmosg@champion           a model of MLflow's registry, by alias or version

Remote models are downloaded once: from the Hub into its own cache, from a URL into `$KOSMOSG_CACHE` (default
`~/.cache/kosmosg`). The same names, without the colon and model, name decoders: `decoder_folder("toyworld")`.
"""

import difflib
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kosmosg.errors import CheckpointError, ConfigError
from kosmosg.node_cache import cache_folder
from kosmosg.plugins import load_entry, load_plugins

logger = logging.getLogger(__name__)

_LARGEST_LINK = 4096  # bytes


@dataclass(frozen=True)
class ShippedModels:
    """The trained models of a plug-in and the decoder that they were trained for."""

    folder: Path
    """The decoder, in the diffusers layout, with one export per model in subfolders."""
    models: tuple[str, ...]
    """Names of the exports, the final one last."""
    default_steps: int
    """Denoising steps to use by default."""
    default_guidance: float
    """Guidance scale to use by default."""
    description: str = ""
    """What it can generate, printed when it is chosen automatically: "32 x 32 pixels, ..."."""


REGISTRIES: dict[str, str] = {}
"""Scheme -> `module:function` that gives the folder of a model in a registry, such as MLflow's `models:/NAME@ALIAS`."""

MODELS: dict[str, ShippedModels] = {}
"""Name before the colon -> what a plug-in ships under that name."""

RENAMED = {"world": "toyworld"}
"""Names of earlier releases, still understood."""


def resolve_model(name: str | Path, **download: Any) -> Path:
    """The folder of a model: an export, or a whole pipeline.

    Args:
        name: a name of any of the kinds listed in this module's docstring.
        download: options for the Hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        CheckpointError: there is no such model. The message lists what exists and suggests the nearest name.
    """
    known = shipped_model(name)
    if known is not None:
        return known
    text = _text(name)
    if text.startswith("models:/"):
        return _from_registry(text)
    if "://" in text:
        return _from_url(text, download)
    if Path(name).is_dir():
        return Path(name).absolute()
    # A name inside an existing folder is a typo, not a Hub id.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text) or Path(name).parts[0] in (".", "..") or Path(name).parent.is_dir():
        raise CheckpointError(f"there is no model {text!r}; {_advice(text)}")
    return _from_hub(text, download)


def shipped_model(name: str | Path) -> Path | None:
    """The folder of a model that a plug-in ships; None if the name is not one of theirs.

    Raises:
        CheckpointError: the plug-in ships no such model.
    """
    scheme, colon, model = str(name).partition(":")
    if not colon or model.startswith("//"):
        return None
    shipped = _shipped(scheme, lambda new: f"{new}:{model}")
    if shipped is None:
        return None
    if model not in shipped.models:
        raise CheckpointError(f"there is no model {str(name)!r}; {_advice(str(name))}")
    return shipped.folder / model


def local_name(name: Any) -> Any:
    """A name for `from_pretrained` of transformers: folders for names that only this module knows, others unchanged."""
    if not isinstance(name, str | Path):
        return name
    # Folders and Hub ids do not contain colons: such names are ours, or typos.
    return resolve_model(name) if ":" in str(name) and not Path(name).is_dir() else name


def shipped_decoder(name: Any) -> ShippedModels | None:
    """What a plug-in ships under a decoder's name; None for folders, Hub ids and pipelines."""
    return _shipped(name, str) if isinstance(name, str) and not Path(name).is_dir() else None


def decoder_folder(name: str | Path) -> str:
    """Where diffusers loads a decoder from: a folder for shipped ones and URLs, otherwise the Hub id or folder."""
    shipped = shipped_decoder(name)
    if shipped is not None:
        return str(shipped.folder)
    return str(_from_url(_text(name), {})) if "://" in _text(name) else str(name)


def decoder_of(name: str | Path, folder: Path) -> str | None:
    """The decoder that an export was trained for: that of its plug-in, or the one in its settings; else None."""
    scheme = str(name).partition(":")[0]
    if shipped_model(name) is not None:
        return RENAMED.get(scheme, scheme)
    settings = folder / "experiment.yaml"
    if not settings.is_file():
        return None
    import yaml

    content = yaml.safe_load(settings.read_text(encoding="utf-8"))
    named = content.get("decoder") if isinstance(content, dict) else None
    return RENAMED.get(named, named) if isinstance(named, str) else None


def model_for(decoder: str | Path) -> str | None:
    """The final model that ships with a decoder, such as `toyworld:instruct`; None if there is none."""
    shipped = shipped_decoder(str(decoder))
    if shipped is None:
        return None
    return f"{RENAMED.get(str(decoder), decoder)}:{shipped.models[-1]}"


def model_description(name: str | Path, folder: Path) -> str:
    """What a model can generate, in a few words: its plug-in's description, or else the decoder it was trained for.

    Empty if neither is known. `folder` is what `resolve_model(name)` returns.
    """
    decoder = decoder_of(name, folder)
    if decoder is None:
        return ""
    shipped = shipped_decoder(decoder)
    return shipped.description if shipped is not None else f"trained for the decoder {decoder}"


def model_names() -> list[str]:
    """The models that ship, such as `toyworld:instruct`."""
    load_plugins()
    return [f"{scheme}:{model}" for scheme, shipped in MODELS.items() for model in shipped.models]


def decoder_choices() -> str:
    """The possible values for a decoder, for error messages."""
    load_plugins()
    return f"a Stable Diffusion 1.x folder of the diffusers layout, a URL, a Hub id, or what ships: {', '.join(MODELS)}"


def _text(name: str | Path) -> str:
    """A name as it was written: `Path` turns the two slashes of a URL into one."""
    return re.sub(r"^([a-z][a-z0-9]+):/(?!/)", r"\1://", str(name)) if isinstance(name, Path) else name


def _shipped(scheme: str, new_name: Callable[[str], str]) -> ShippedModels | None:
    load_plugins()
    if scheme in RENAMED and scheme not in MODELS:
        _say_new_name(new_name(scheme), new_name(RENAMED[scheme]))
        scheme = RENAMED[scheme]
    return MODELS.get(scheme)


@cache
def _say_new_name(old: str, new: str) -> None:
    """Once in a process."""
    logger.warning("%r is now called %r; please use the new name", old, new)


def _advice(name: str) -> str:
    """The nearest name, and the possible ones."""
    names = model_names()
    path = Path(name)
    parent = next((parent for parent in path.parents if parent.is_dir()), Path())
    # Match the first wrong part of the path, so that `runs/instrct/export` finds `runs/instruct`.
    wrong = path.parts[len(parent.parts)] if path.parts else name
    beside = [child.name for child in sorted(parent.iterdir()) if child.is_dir()]
    close = difflib.get_close_matches(name, names, n=1)
    close += [str(parent / found) for found in difflib.get_close_matches(wrong, beside, n=1)]
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}give one that ships ({', '.join(names)}), a folder, a URL, or a Hub id (OWNER/NAME)"


def _from_registry(name: str) -> Path:
    scheme = name.partition(":")[0]
    if scheme not in REGISTRIES:
        raise CheckpointError(f"{name} is a name in MLflow's registry; import kosmosg_platform, which knows it")
    folder: Path = load_entry(REGISTRIES, scheme, "model")(name)
    return folder


def _from_hub(name: str, download: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **download))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} is neither a folder nor a reachable Hub id; {_advice(name)} ({str(error).splitlines()[0]})"
        ) from error


def _from_url(url: str, download: dict[str, Any]) -> Path:
    scheme, _, rest = url.partition("://")
    if scheme == "hf" or (scheme in ("https", "http") and rest.startswith("huggingface.co/")):
        owner, name, *path = (*rest.removeprefix("huggingface.co/").strip("/").split("/"), "", "")[:4]
        if path[:1] == ["tree"] and path[1]:
            download = {"revision": path[1], **download}
        return _from_hub(f"{owner}/{name}".strip("/"), download)
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, LocalFileSystem

    try:
        filesystem, root = FileSystem.from_uri(url)
    except (ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"{url} is not the URL of a model folder ({str(error).splitlines()[0]}); use s3://, gs://, hdfs://, "
            "file:// or hf://"
        ) from error
    if isinstance(filesystem, LocalFileSystem):
        return resolve_model(Path(root))
    return fetch_folder(filesystem, _follow_link(filesystem, root), url, cache_folder() / "models")


def _follow_link(filesystem: Any, root: str) -> str:
    """The folder that a small file, `{"link": "abc/export"}`, names beside it: stores have no symbolic links."""
    from pyarrow.fs import FileType

    try:
        found = filesystem.get_file_info(root)
        if found.type != FileType.File or found.size > _LARGEST_LINK:
            return root
        with filesystem.open_input_stream(root) as file:
            told = json.loads(file.read())["link"]
    except (OSError, ValueError, LookupError, TypeError):
        return root  # no link: what it is instead is told when it is read
    inside = isinstance(told, str) and ".." not in told.split("/") and not told.startswith("/")
    return f"{root.rpartition('/')[0]}/{told}" if inside else root


def fetch_folder(filesystem: Any, root: str, url: str, cache: Path) -> Path:
    """A copy of a remote folder under `cache`, renewed only if the listing of the original has changed.

    Args:
        filesystem: a pyarrow filesystem.
        root: the folder on it.
        url: its name in messages and in the cache.
        cache: folder of the copies, which are written atomically.

    Raises:
        CheckpointError: there is no such folder, it is empty, or it cannot be reached.
    """
    from pyarrow.fs import FileSelector, FileType

    try:
        files = [
            file for file in filesystem.get_file_info(FileSelector(root, recursive=True)) if file.type == FileType.File
        ]
    except OSError as error:
        raise CheckpointError(f"{url} cannot be read ({str(error).splitlines()[0]}); check URL and access") from error
    if not files:
        raise CheckpointError(f"there is nothing at {url}; give the URL of an export or pipeline folder")
    listing = "\n".join([url, *sorted(f"{file.path} {file.size} {file.mtime_ns}" for file in files)])
    name = root.rstrip("/").rpartition("/")[2]
    folder = cache / f"{name}-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    logger.info("downloading %s to %s", url, folder)
    cache.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
    try:
        for file in files:
            target = draft / os.path.relpath(file.path, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open_input_stream(file.path) as stream, target.open("wb") as copy:
                shutil.copyfileobj(stream, copy, 2**24)
        if not folder.is_dir():  # another process may have been faster
            os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
