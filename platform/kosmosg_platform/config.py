"""How presets and `key=value` become one frozen, validated configuration.

Precedence, later wins: defaults in the section classes < the preset's top level < the preset's `jobs.<job>` section <
`key=value` on the command line. An unknown key is an error that names its dotted path and the nearest existing key; a
value of the wrong type is an error that names both. The result can be saved and used as a preset, because a preset is
just a partial configuration.
"""

import ast
import dataclasses
import difflib
import hashlib
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from kosmosg.errors import ConfigError
from kosmosg_platform.stores.location import UrlsToo

RENAMED: dict[str, str] = {
    "world": "toyworld",
    "foundation": "toyworld_build",
    "proof": "ablation",
    "evaluate.solver": "evaluate.scheduler",
    "decoding.orders": "decoding.max_concurrent",
    "decoding.rows": "decoding.max_batch_rows",
    "encoding.batch": "encoding.max_batch_size",
    "build.reader": "build.source.use",
    "build.kind": "build.source.kind",
    "build.column": "build.source.column",
    "build.square": "build.source.square",
    "build.working_size": "build.source.working_size",
    "build.captioner": "build.steps",
    "build.entities": "build.steps",
    "build.masks": "build.steps",
    "data.length": "data.max_seq_len",
    "data.questions": "data.datasets.questions",
    "scale.loaders": "scale.dataloader_workers",
    "templates.instruct.rule": "",
    "templates.pretrain.whole_picture": "templates.pretrain.whole_image",
    "train.clip": "train.max_grad_norm",
    "train.decay": "train.decay_fraction",
    "train.rates": "train.lr_multipliers",
}
"""Settings of earlier releases and their new names; an empty name means that the setting was removed."""

RENAMED_PRESETS = {"world": "toyworld"}


class Section(BaseModel):
    """Base of every configuration section: frozen, rejects unknown keys, attribute docstrings are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_url_for_a_folder(cls, value: Any, info: ValidationInfo) -> Any:
        """`Path` would make a relative folder of a URL, named `s3:`, on the node that happens to write there."""
        given = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        url = next((one for one in given if isinstance(one, str) and re.match(r"[a-z][a-z0-9+.-]+:/", one)), None)
        field = cls.model_fields[str(info.field_name)]
        takes_urls = any(isinstance(one, UrlsToo) for one in field.metadata)
        if url is not None and not takes_urls and _is_about_paths(field.annotation):
            raise ValueError(
                f"{url} is a URL, but this setting takes a folder or file that every node sees, such as a bucket that "
                "is mounted on all of them"
            )
        return value


S = TypeVar("S", bound=Section)


def resolve(kind: type[S], preset: str, job: str, overrides: Sequence[str], presets: Path) -> S:
    """The configuration of one job.

    `preset` is a name in the folder `presets` or the path of a YAML file (for example a saved `experiment.yaml`);
    `overrides` are `dotted.key=value` with the value in YAML. Raises ConfigError.
    """
    values = read_preset(preset, presets)
    overlays = values.pop("jobs", {}) or {}
    if not isinstance(overlays, dict):
        raise ConfigError(f"jobs: preset {preset!r} must map job names to settings, not {type(overlays).__name__}")
    values = merge(values, overlays.get(job) or {})
    for text in overrides:
        values = merge(_without_replaced(kind, values, text), parse_override(text))
    return validate(kind, values)


def _without_replaced(kind: Any, values: dict[str, Any], override: str) -> dict[str, Any]:
    """The values without the mapping that an override replaces: one whose keys are not settings, such as
    `data.weights`. A section given as a mapping is merged key by key, and so is a key inside of a mapping."""
    *path, name = override.partition("=")[0].strip().split(".")
    field: Any = kind
    for part in [*path, name]:
        field = _structured(_fields(field).get(part)) if field is not None and part in _fields(field) else None
        if field is None and part != name:
            return values  # a key inside of a plain mapping, or one that is not there and will be refused
    if field is not None:
        return values
    inner: Any = values
    for part in path:
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get(name), Mapping):
        return values
    emptied: Any = {key: value for key, value in inner.items() if key != name}
    for depth in range(len(path), 0, -1):
        parent: Any = values
        for part in path[: depth - 1]:
            parent = parent[part]
        emptied = {**parent, path[depth - 1]: emptied}
    return typing.cast(dict[str, Any], emptied)


def validate(kind: type[S], values: Mapping[str, Any]) -> S:
    """Check plain values against the section classes. Raises ConfigError with the dotted path of the first mistake."""
    _refuse_unknown(kind, values, path=())
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or kind.__name__
        given = first.get("input")
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {message} (given: {given!r})") from None


def read_preset(preset: str, presets: Path) -> dict[str, Any]:
    """The plain values of a preset, by name or by path."""
    path = Path(preset) if preset.endswith((".yaml", ".yml")) else presets / f"{preset}.yaml"
    if preset in RENAMED_PRESETS and not path.is_file():
        raise ConfigError(f"preset: {preset!r} is called {RENAMED_PRESETS[preset]!r} now")
    if not path.is_file():
        names = sorted(p.stem for p in presets.glob("*.yaml"))
        raise ConfigError(
            f"preset: there is no {preset!r}; choose one of {', '.join(names)} or the path of a YAML file"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"preset: {path} is not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"preset: {path} must hold keys and values, not a {type(values).__name__}")
    return values


def parse_override(text: str) -> dict[str, Any]:
    """`train.steps=10` as `{"train": {"steps": 10}}`."""
    key, sign, value = text.partition("=")
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise ConfigError(f"{text}: settings are given as key=value, for example train.steps=100")
    try:
        parsed: Any = yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        parsed = value  # a path or a sentence with YAML's own signs in it
    for part in reversed(parts):
        parsed = {part: parsed}
    return typing.cast(dict[str, Any], parsed)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def plain(section: Section) -> dict[str, Any]:
    """The value as JSON-like data (paths as text), keys in declared order."""
    return section.model_dump(mode="json")


def to_yaml(section: Section) -> str:
    """The value as YAML that `resolve` accepts as a preset."""
    return yaml.safe_dump(plain(section), sort_keys=False, allow_unicode=True)


def digest(values: Any) -> str:
    """sha256 of JSON-like data, or of a section, in canonical form: equal values, equal digest."""
    data = plain(values) if isinstance(values, Section) else values
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested data as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value})
    return flat


def describe(kind: type[Section]) -> Iterator[tuple[str, str, str]]:
    """Every key of a configuration as (dotted path, default, help), for `--help` and the documentation."""
    defaults = flatten(plain(kind()))
    for path, text in _documented(kind):
        yield path, json.dumps(defaults[path], ensure_ascii=False) if path in defaults else "", text


def _documented(kind: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, annotation in _fields(kind).items():
        inner = _structured(annotation)
        if inner is not None:
            yield from _documented(inner, f"{prefix}{name}.")
            continue
        text = kind.model_fields[name].description if issubclass(kind, BaseModel) else _docstrings(kind).get(name)
        yield f"{prefix}{name}", " ".join((text or "").split())


def _docstrings(kind: type) -> dict[str, str]:
    """The attribute docstrings of a dataclass; pydantic finds those of sections itself."""
    (declared,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    found: dict[str, str] = {}
    body = declared.body if isinstance(declared, ast.ClassDef) else []
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = str(getattr(text.value, "value", ""))
    return found


def _refuse_unknown(kind: Any, values: Mapping[str, Any], path: tuple[str, ...]) -> None:
    known = _fields(kind)
    for key, value in values.items():
        here = (*path, str(key))
        if key not in known:
            dotted = ".".join(here)
            if dotted in RENAMED:
                now = RENAMED[dotted]
                advice = f"now called {now}" if now else "no longer used; remove it"
                raise ConfigError(f"{dotted}: this setting is {advice}")
            raise ConfigError(f"{dotted}: no such setting{_nearest(str(key), path, known)}")
        inner = _structured(known[key])
        if inner is not None and isinstance(value, Mapping):
            _refuse_unknown(inner, value, here)


def _nearest(key: str, path: tuple[str, ...], known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join((*path, close[0]))}?"
    where = f"under {'.'.join(path)} " if path else ""
    return f"; {where}there are {', '.join(sorted(known))}"


def _fields(kind: Any) -> dict[str, Any]:
    """Field names and types of a section or of a plain dataclass (the objectives of the stages are dataclasses)."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {name: field.annotation for name, field in kind.model_fields.items()}


def _is_about_paths(annotation: Any) -> bool:
    """Whether an annotation such as `Path | None` or `dict[str, Path]` has a path in it, which takes no URL."""
    if typing.get_origin(annotation) is typing.Annotated:
        return not any(isinstance(one, UrlsToo) for one in annotation.__metadata__)
    return annotation is Path or any(map(_is_about_paths, typing.get_args(annotation)))


def _structured(annotation: Any) -> Any | None:
    """The section or dataclass inside an annotation such as `X` or `X | None`; None for plain values."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = [_structured(part) for part in typing.get_args(annotation)]
        return next((part for part in inner if part is not None), None)
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        return annotation
    return None
