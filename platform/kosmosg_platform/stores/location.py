"""Settings that take a folder, on a disk or in an object store.

A job works on local files. A folder in a store has a local copy on every node that uses it, at a path made of its URL:

    s3://bucket/runs/demo    $KOSMOSG_CACHE/kosmosg-stores/s3/-/bucket/runs/demo

so a path tells whether it is such a copy, and of what. The copy may be deleted whenever no job is running; what it
holds beyond the store's content is only what could not be uploaded yet.
"""

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import BeforeValidator, PlainSerializer

from kosmosg.node_cache import cache_folder

COPIES = "kosmosg-stores"
SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")
_NO_OPTIONS = "-"


def local_copy(url: str) -> Path:
    """Where the copy of a folder or file in a store lies on this node; the path itself for a `file:` URL.

    Raises ValueError for a URL that is of no store, or has a password in it.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise ValueError(f"{url} is no folder that can be written; give a folder, or s3://, gs://, hdfs:// or file://")
    if parts.username or parts.password:
        raise ValueError(
            "a URL ends up in logs and reports, so it takes no user and no password; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (or what the store's own library reads) in the environment instead"
        )
    names = [name for name in parts.path.split("/") if name]
    if any(name in (".", "..") for name in names):
        raise ValueError(f"{url} has a part that is . or ..; give the URL without")
    options = quote(parts.query, safe="=&") or _NO_OPTIONS
    return cache_folder().absolute().joinpath(COPIES, parts.scheme, options, parts.netloc, *names)


def url_of(path: str | Path) -> str | None:
    """The URL that a local copy stands for; None for a path that is no such copy.

    Told by the name of the folder, so it holds on nodes with another `$KOSMOSG_CACHE` as well.
    """
    parts = Path(path).parts
    if COPIES not in parts or len(parts) < parts.index(COPIES) + 4:
        return None
    scheme, options, *names = parts[parts.index(COPIES) + 1 :]
    return f"{scheme}://{'/'.join(names)}" + ("" if options == _NO_OPTIONS else f"?{unquote(options)}")


def told(path: str | Path) -> str:
    """A folder or file as the user named it: its URL if it is the copy of one."""
    return url_of(path) or str(path)


class UrlsToo:
    """Marks an annotation of a path that takes URLs as well."""


def _local(value: Any) -> Any:
    is_url = isinstance(value, str) and re.match(r"[a-z][a-z0-9+.-]+:/", value)
    return local_copy(value) if is_url else value


Location = Annotated[Path, UrlsToo(), BeforeValidator(_local), PlainSerializer(told, return_type=str, when_used="json")]
"""Type of a setting that takes a folder or a URL. Its value is the folder, or the local copy of the URL."""
