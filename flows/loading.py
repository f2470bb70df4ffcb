# pyright: basic
"""From a YAML file to a plan: overrides, paths made absolute, and in one sentence what is wrong with it."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from flows.plan import Plan
from flows.plan_parts import Part
from tasks.algorithms import named
from tasks.core.errors import SpecError

P = TypeVar("P", bound=Part)


def load(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan file; `overrides` are `policy.beta=0.2`.  Raises SpecError, in one sentence, for anything wrong with it."""
    return load_as(Plan, path, overrides)


def load_as(kind: type[P], path: Path, overrides: Sequence[str] = ()) -> P:
    """The same for a plan of another kind, which has a `store`."""
    raw = read(path, overrides)
    for field, command in _TELLING.items():
        if (field in raw) > (field in kind.model_fields):
            raise SpecError(f"{path}: this is a plan for {command}, as its field `{field}` says")
        if field in kind.model_fields and field not in raw:
            raise SpecError(f"{path}: this is no plan for {command}: it has no field `{field}`")
    relocated(raw, path.absolute().parent)
    store = raw.setdefault("store", {})
    if isinstance(store, dict):
        store["root"] = os.environ.get("ALIGN_STORE") or str(Path(store.get("root", "store")).absolute())
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = [_sentence(detail, kind) for detail in _causes(error.errors())]
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise SpecError(f"{path}: {'; '.join(found[:3])}{more}") from error


_TELLING = {"task": "`align run` and its like, of a task head", "tasks": "`align continual`"}
"""field that only one kind of plan has -> what takes such a plan"""


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a plan file as they are written, with `overrides` set.  Raises SpecError where there are none."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}; give the path of a plan such as flows/plans/demo.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: a plan is a mapping of fields, this is {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one field: `policy.beta=0.2`, `gates.0.at_least=0.6`; the value is read as YAML."""
    where, equals, text = override.partition("=")
    if not equals or not where:
        raise SpecError(f"--set {override}: write it as field=value, for example policy.beta=0.2")
    *parents, last = where.split(".")
    at: Any = raw
    try:
        for name in parents:
            at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
        at[int(last) if isinstance(at, list) else last] = yaml.safe_load(text)
    except (TypeError, ValueError, IndexError, AttributeError, yaml.YAMLError) as error:
        raise SpecError(f"--set {override}: the plan has no such place") from error


def relocated(raw: dict[str, Any], folder: Path) -> None:
    """Make the paths of the plan absolute: they are relative to the file that names them."""
    for part, field in (("model", "base"), ("reward", "pretrained")):
        fields = raw.get(part)
        if isinstance(fields, dict) and isinstance(named := fields.get(field), str) and named.startswith((".", "/", "~")):
            local = (folder / Path(named).expanduser()).resolve()
            if not local.is_dir():
                raise SpecError(f"{part}.{field}: {local} is not a folder")
            fields[field] = str(local)
    _anchor(raw, folder)
    evaluation = raw.get("evaluation")
    for suite in (evaluation.get("suites") or ()) if isinstance(evaluation, dict) else ():
        for field in ("source", "include") if isinstance(suite, dict) else ():
            if isinstance(path := suite.get(field), str):
                suite[field] = str((folder / Path(path).expanduser()).resolve())


def _anchor(at: object, folder: Path) -> None:
    """Make the paths of all `sources` below `at` absolute."""
    for part in at.values() if isinstance(at, dict) else at if isinstance(at, list) else ():
        _anchor(part, folder)
        if isinstance(part, dict) and "sources" in part:
            entries = part["sources"] if isinstance(part["sources"], list) else [part["sources"]]
            part["sources"] = [_anchored(entry, folder) for entry in entries]


def _anchored(entry: object, folder: Path) -> object:
    """One source with its paths made absolute; a bare text is a path."""
    fields = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        return fields
    named = {name: path for name in ("path", "images") if isinstance(path := fields.get(name), str)}
    return {**fields, **{name: str((folder / Path(path).expanduser()).resolve()) for name, path in named.items()}}


def _causes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without those that only follow from another: defaults of a wrong field, a list empty but for a wrong item."""

    def follows(one: ErrorDetails) -> bool:
        inside = any(other is not one and other["loc"][: len(one["loc"])] == one["loc"] for other in details)
        return one["type"] == "default_factory_not_called" or (one["type"] == "too_short" and inside)

    return [detail for detail in details if not follows(detail)]


def _sentence(detail: ErrorDetails, kind: type[Part]) -> str:
    """One pydantic error as people read it: `policy.beta: must be greater than 0, got -1`."""
    where, known = _place(kind, detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{where}: no such field{_near(detail['loc'][-1], known)}"
    if detail["type"] == "missing":
        return f"{where}: missing"
    if detail["type"] == "union_tag_invalid":
        told = detail.get("ctx", {})
        able = [name.strip(" '") for name in told["expected_tags"].split(",")]
        by = told["discriminator"].strip("'")
        return f"{where}.{_TOLD_BY.get(by, by)}: {told['tag']} is none of {', '.join(able)}{_near(told['tag'], able)}"
    if detail["type"] == "union_tag_not_found":
        return f"{where}.{detail.get('ctx', {})['discriminator'].strip(chr(39))}: missing"
    said = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    got = detail["input"]
    shown = f", got {got!r}" if isinstance(got, int | float | str | None) else ""
    return f"{where}: {said}{shown}" if where else said


_TOLD_BY = {f"{named.__name__}()": "algorithm"}
"""what pydantic calls the function that tells the member of a union -> the field that the function reads"""


def _near(name: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _place(kind: type[Part], location: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """A location as it is written in a plan file, and the fields that could stand where it ends.

    Pydantic puts the chosen member of a union into the location, which a file does not; so the schema is walked beside it.
    """
    at: Any = kind.model_json_schema()
    definitions: Mapping[str, Any] = at["$defs"]

    def resolve(at: Any) -> Any:  # noqa: ANN401
        while True:
            options = [option for option in at.get("anyOf", ()) if option.get("type") != "null"]
            if len(options) == 1:  # a part that may be left out
                at = options[0]
            elif "$ref" in at:
                at = definitions[at["$ref"].rpartition("/")[2]]
            else:
                return at

    written: list[str] = []
    for i, part in enumerate(location):
        at = resolve(at)
        chosen = next((option for option in at.get("oneOf", ()) if _is_called(resolve(option), part)), None)
        if chosen:
            at = chosen
            continue
        if part != "rules":  # a plan file writes the rules of its data beside the sources
            written.append(str(part))
        if i < len(location) - 1:
            at = at.get("items", {}) if isinstance(part, int) else at.get("properties", {}).get(part, {})
    return ".".join(written), list(resolve(at).get("properties", {}))


def _is_called(member: Mapping[str, Any], part: int | str) -> bool:
    """Whether a member of a union is told from the others by `part`."""
    fields: Mapping[str, Any] = member.get("properties", {})
    return member.get("title") == part or any(fields.get(name, {}).get("const") == part for name in ("name", "algorithm", "rule"))
