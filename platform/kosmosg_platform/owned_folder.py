"""Folders that a job writes and cleans: only those with its marker, so that a user's files are never deleted.

The marker is a small file, `.kosmosg.json`, written when a job first makes the folder (or finds it empty). A folder
with other files in it and no marker belongs to somebody else and is refused before anything is touched.
"""

from collections.abc import Sequence
from pathlib import Path

from kosmosg.errors import ConfigError, DataError
from kosmosg_platform.storage import read_json, write_json
from kosmosg_platform.stores.folder_sync import OF_SYNC
from kosmosg_platform.stores.location import told, url_of
from kosmosg_platform.stores.node_copy import bucket_of

MARKER = ".kosmosg.json"


def claim_folder(folder: Path, job: str, content: str = "", setting: str = "dest") -> Path:
    """Make `folder` a folder of `job`, or find that it is one already; gives its absolute path.

    `content` says what the job puts there (the source of a dataset, say): a folder that holds something else of the
    same job is not replaced either. `setting` is what the user would change.

    Raises ConfigError when the folder is a file, holds files without our marker, or belongs to something else.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{setting}: {folder} is a file; give a folder")
    marker = folder / MARKER
    if marker.is_file():
        _check_owner(marker, job, content, setting)
        return folder
    _refuse_foreign(folder, {path.name for path in folder.iterdir()} if folder.is_dir() else set(), setting)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"job": job, "content": content})
    return folder


def check_stored(folder: Path, setting: str = "dest") -> None:
    """Before a stored folder is copied to this node: raise ConfigError if it holds files without our marker."""
    bucket = bucket_of(folder)
    if bucket is not None and bucket.stat(MARKER) is None:
        _refuse_foreign(folder, {name.split("/")[0] for name in bucket.list()}, setting)


def _refuse_foreign(folder: Path, found: set[str], setting: str) -> None:
    names = sorted(found - OF_SYNC)
    if names:
        raise ConfigError(
            f"{setting}: {told(folder)} holds files that are not this job's ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}), and a job cleans its folder; give a new or empty folder"
        )


def claim_files(folder: Path, job: str, names: Sequence[str]) -> Path:
    """`claim_folder` for a job that writes a few names and leaves what else lies in its folder alone.

    Raises ConfigError when the folder is a file or belongs to another job, or when one of `names` is there although no
    marker says that this job wrote it.
    """
    folder = folder.absolute()
    if not folder.is_dir() or (folder / MARKER).is_file():
        return claim_folder(folder, job)
    foreign = next((name for name in names if (folder / name).exists()), None)
    if foreign is not None:
        raise ConfigError(
            f"dest: {folder} holds {foreign}, which the job {job} would overwrite and has not written; move it "
            "away, or give another folder"
        )
    write_json(folder / MARKER, {"job": job, "content": ""})
    return folder


def refuse_overlap(source: Path, dest: Path) -> None:
    """Raises ConfigError if one folder is the other or is inside it, after resolving links and relative paths."""
    real_source, real_dest = source.resolve(), dest.resolve()
    if real_source == real_dest:
        raise ConfigError(f"dest: {dest} is the source itself; give another folder")
    if real_dest.is_relative_to(real_source):
        raise ConfigError(f"dest: {dest} lies inside source={source}; give a folder outside of it")
    if real_source.is_relative_to(real_dest):
        raise ConfigError(f"source: {source} lies inside dest={dest}, which the job cleans; give another dest")


def refuse_stored_overlap(source: str, dest: Path) -> None:
    """`refuse_overlap` for a source and a destination in object stores."""
    here, there = (f"{url.partition('?')[0].rstrip('/')}/" for url in (source, url_of(dest) or "/"))
    if here.startswith(there) or there.startswith(here):
        raise ConfigError(f"dest: {told(dest)} and source={source} lie inside of each other; give another folder")


def _check_owner(marker: Path, job: str, content: str, setting: str) -> None:
    try:
        owner = read_json(marker)
        owned = str(owner["job"]), str(owner["content"])
    except (DataError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"{setting}: {marker} is damaged ({error}); give another folder") from None
    if owned[0] != job:
        raise ConfigError(
            f"{setting}: {marker.parent} was written by the job {owned[0]}, not {job}; give another folder"
        )
    if content and owned[1] and owned[1] != content:
        raise ConfigError(
            f"{setting}: {marker.parent} holds {owned[1]}, not {content}; give another folder, or remove that one"
        )
