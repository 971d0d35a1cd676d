"""Plug-ins: modules that add entries to the registries when they are imported.

A registry is a plain dict next to the protocol of its entries (`SOURCES`, `ANNOTATORS`, `FILTERS`, `RECORD_KINDS`,
`CONDITIONERS`, `BENCHMARKS`, `FEATURE_NETWORKS`, `MODELS`). The toy world fills them through its plug-in like any
other; a package of your own does so by naming its module under the entry point group `kosmosg.plugins`. See
docs/extending.md.
"""

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from kosmosg.errors import ConfigError

BUILT_IN = ("kosmosg.toyworld.plugin",)
GROUP = "kosmosg.plugins"

Entry = TypeVar("Entry")


@cache
def load_plugins() -> None:
    """Import every plug-in, once per process."""
    for module in BUILT_IN:
        import_module(module)
    for entry_point in entry_points(group=GROUP):
        entry_point.load()


def find_entry(registry: Mapping[str, Entry], name: str, setting: str) -> Entry:
    """The entry of a registry, including those of plug-ins.

    If there is no such entry, raises ConfigError with the setting, the nearest name and all names.
    """
    load_plugins()
    if name not in registry:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"{setting}: there is no {name!r}; {hint}choose one of {', '.join(sorted(registry))}")
    return registry[name]


def load_entry(registry: Mapping[str, Any], name: str, setting: str) -> Any:
    """The entry of a registry whose values are classes or `module:class`, imported now. Raises ConfigError."""
    entry = find_entry(registry, name, setting)
    if not isinstance(entry, str):
        return entry
    module, _, attribute = entry.partition(":")
    return getattr(import_module(module), attribute)
