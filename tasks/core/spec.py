"""Specs and their canonical JSON.  What decides a result is a `Spec`; what cannot be hashed raises."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, TypeAlias, cast

from pydantic import BaseModel, ConfigDict

from tasks.core.errors import SpecError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Spec(BaseModel):
    """What is asked for: closed, frozen, every field part of the identity of what is built."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    later: ClassVar[Mapping[str, Json]] = MappingProxyType({})
    """fields that came when artifacts of this spec were there already -> the value that those were made with: where a field has
    it, it is left out of the canonical form, so that they keep their keys"""


def to_json(value: object, where: str = "value") -> Json:
    """Return `value` as plain JSON.  Raises SpecError for what has no single canonical form."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise SpecError(f"{where}: {value} has no canonical form; use a finite number")
            return value
        case Spec():
            fields = {name: to_json(getattr(value, name), f"{where}.{name}") for name in type(value).model_fields}
            return {name: item for name, item in fields.items() if name not in value.later or item != value.later[name]}
        case Mapping():
            items = cast(Mapping[object, object], value).items()
            if any(not isinstance(key, str) for key, _ in items):
                raise SpecError(f"{where}: keys must be strings to have a canonical form")
            return {str(key): to_json(item, f"{where}.{key}") for key, item in items}
        case list() | tuple():
            return [to_json(item, f"{where}[{i}]") for i, item in enumerate(cast(Sequence[object], value))]
        case Path():
            raise SpecError(f"{where}: a path says where, not what; pass its content digest instead")
        case _:
            raise SpecError(f"{where}: {type(value).__name__} has no canonical form; use numbers, text, lists or specs")


def canonical(value: object) -> str:
    """Canonical JSON: sorted keys, no spaces, UTF-8 kept as it is.

    >>> canonical({"b": 1.0, "a": ["é"]})
    '{"a":["é"],"b":1.0}'
    """
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(text: str) -> str:
    """Hex sha256 of `text` in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Json, new: Json, where: str = "") -> list[str]:
    """Name every field that differs, as `field: old -> new`.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": 4})
    ['a.b: 1 -> 3', 'c: 2 -> (absent)', 'd: (absent) -> 4']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            name = f"{where}.{key}" if where else key
            if key not in new:
                found.append(f"{name}: {_short(old[key])} -> (absent)")
            elif key not in old:
                found.append(f"{name}: (absent) -> {_short(new[key])}")
            else:
                found += differences(old[key], new[key], name)
        return found
    if old != new:
        return [f"{where}: {_short(old)} -> {_short(new)}"]
    return []


def _short(value: Json) -> str:
    text = value[:12] if isinstance(value, str) and len(value) == 64 else canonical(value)
    return text if len(text) <= 60 else text[:57] + "..."
