"""The export that a stage made last: `OUTPUT/<stage>/export`, a symbolic link on a disk.

In a store, which has no links, it is a small file of that name, `{"link": "<key>/export"}`; `kosmosg.hub` follows it as
well, so `--model s3://bucket/runs/instruct/export` means the same as with a folder.
"""

import json
import os
from pathlib import Path

from kosmosg.errors import DataError
from kosmosg_platform.storage import point, read_json
from kosmosg_platform.stores.location import url_of
from kosmosg_platform.stores.node_copy import bring, bring_folder, bucket_of


def make_link(link: Path, target: Path) -> None:
    """Make `link` name a folder beside it, in place of an earlier one."""
    bucket = bucket_of(link.parent)
    if bucket is None:
        point(link, target)
    else:
        bucket.write(link.name, json.dumps({"link": os.path.relpath(target, link.parent)}).encode())


def follow_link(link: Path) -> Path | None:
    """The folder that `link` names, with its files on this node; None if there is none.

    Raises DataError if the link is damaged, and StoreError if the store does not answer.
    """
    if url_of(link) is None:
        return link.resolve() if link.is_dir() else None
    if not bring(link).is_file():
        return None
    told = read_json(link)
    if not isinstance(told, dict) or not isinstance(told.get("link"), str) or ".." in Path(told["link"]).parts:
        raise DataError(f"{url_of(link)} does not name a folder beside it; remove it, and run the stage again")
    return bring_folder(link.parent / told["link"])
