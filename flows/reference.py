"""Tables for the documentation, from the code itself: commands, fields of a plan, methods, metrics."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def commands() -> str:
    """Every verb of `align`, with its one-line help."""
    from flows.cli import cli

    rows: list[list[str]] = []
    for command in cli.registered_commands:
        assert command.callback is not None
        said, _, example = (command.callback.__doc__ or "").partition("  Example: ")
        rows.append([f"`align {command.name or command.callback.__name__}`", said, f"`{example.strip()}`"])
    return _table(["command", "what it does", "example"], rows)


def methods() -> str:
    """Every fine-tuning method."""
    from tasks.methods import METHODS

    columns = list(next(iter(METHODS.values())).describe())
    return _table(["method", *columns], [[f"`{name}`", *row.describe().values()] for name, row in METHODS.items()])


def metrics() -> str:
    """Every metric a gate can name."""
    from evals.estimates import METRICS

    rows = [[f"`{name}`", metric.meaning, metric.unit, "yes" if metric.comparative else "no"] for name, metric in METRICS.items()]
    return _table(["metric", "meaning", "unit", "compared"], rows)


def advice_rules() -> str:
    """Every rule of `align advise`."""
    from tasks.advice_rules import RULES

    rows: list[list[str]] = []
    for rule in RULES:
        points = ", ".join(f"{name} {value:+g}" for name, value in rule.points.items())
        rows.append([rule.name, f"`{rule.when}`", points, rule.because, rule.rests_on])
    return _table(["rule", "when", "points", "because", "rests on"], rows)


def advice_quality() -> str:
    """What `align advise` takes for the quality of a method that was not measured here."""
    from tasks.methods import METHODS

    ranked = sorted(METHODS.items(), key=lambda item: -item[1].quality[0])
    rows = [[f"`{name}`", f"{row.quality[0]:.3f}", row.quality[1]] for name, row in ranked]
    return _table(["method", "quality", "rests on"], rows)


def advice_constraints() -> str:
    """What a method must be able to do to be ranked."""
    from tasks.advice_rules import CONSTRAINTS

    return "\n".join(f"- {constraint.name}" for constraint in CONSTRAINTS)


def algorithms() -> str:
    """Every way from the SFT policy to the policy."""
    from tasks.algorithms import ALGORITHMS, SPECS

    rows = [[f"`{name}`", row.meaning, _NEEDS[row.learns_from], _papers(SPECS[name])] for name, row in ALGORITHMS.items()]
    return _table(["algorithm", "learns from", "needs", "source"], rows)


_NEEDS = {
    "pairs": "`data.preferences`",
    "feedback": "`data.feedback`, or the pairs of `data.preferences` taken apart",
    "answers": "prompts (`data.practice`, or those of `data.preferences`) and `rewards`",
}
"""what an algorithm learns from -> where a plan gives it"""


def _said(spec: type[BaseModel]) -> str:
    """The first paragraph of what a spec says of itself."""
    return " ".join((spec.__doc__ or "").partition("\n\n")[0].split())


def _papers(spec: type[BaseModel]) -> str:
    return ", ".join(re.findall(r"arXiv:[0-9.]+[0-9]", _said(spec)))


def rewards() -> str:
    """Every rule that can reward an answer, with its fields."""
    from typing import get_args

    from tasks.rewarding import AnyReward

    rows: list[list[str]] = []
    for spec in get_args(AnyReward):
        fields = [(name, default, said) for name, default, said in _of_spec(spec) if name not in ("`rule`", "`weight`")]
        told = "; ".join(f"{name} ({default}): {said}" for name, default, said in fields)
        rows.append([f"`{spec.model_fields['rule'].default}`", _said(spec).rstrip("."), told or "-"])
    return _table(["rule", "reward", "fields (default)"], rows)


def plan_fields() -> str:
    """Every field of a plan with its default and meaning; of `policy` those that all algorithms have."""
    from flows.plan import Plan

    schema = Plan.model_json_schema()
    return _table(["field", "default", "meaning"], [list(row) for row in _fields(schema, schema["$defs"], "")])


def policy_fields() -> str:
    """Per algorithm the fields of `policy` that not all of them have."""
    from tasks.algorithms import ALGORITHMS, SPECS

    common = _common([list(_of_spec(spec)) for spec in SPECS.values()])
    parts: list[str] = []
    for name, spec in SPECS.items():
        own = [[f"`policy.{row[0][1:]}", *row[1:]] for row in _of_spec(spec) if row not in common and row[0] != "`algorithm`"]
        parts.append(f"### `policy.algorithm: {name}`\n\n{_said(spec)} Needs {_NEEDS[ALGORITHMS[name].learns_from]}.\n\n")
        parts.append(_table(["field", "default", "meaning"], own) + "\n\n")
    return "".join(parts).rstrip()


def task_fields() -> str:
    """Every field of the plan of a task head that other plans do not have, or have another way."""
    from flows.plan import Plan
    from flows.task_plan import TaskPlan

    schema, known = TaskPlan.model_json_schema(), Plan.model_json_schema()
    there = set(_fields(known, known["$defs"], ""))
    rows = [row for row in _fields(schema, schema["$defs"], "") if row not in there]
    return _table(["field", "default", "meaning"], [list(row) for row in rows])


def _fields(at: Mapping[str, Any], definitions: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, str]]:
    for name, field in at.get("properties", {}).items():
        path = f"{where}.{name}" if where else name
        if path.endswith(".rules"):  # a plan file writes the rules of its data beside the sources
            yield from _fields(_resolved(field, definitions), definitions, where)
            continue
        if path.endswith(".paths"):
            continue
        default = "required" if name in at.get("required", []) else _shown(field.get("default"))
        inner = _resolved(field, definitions)
        members = [_resolved(member, definitions) for member in inner.get("oneOf", ())]
        if members and all("algorithm" in member["properties"] for member in members):
            names = [member["properties"]["algorithm"]["const"] for member in members]
            meaning = f"how it is made from the SFT policy: {', '.join(names)}"
            yield f"`{path}.algorithm`", _shown(names[0]), meaning
            yield from _common([list(_fields(member, definitions, path)) for member in members])
            continue
        if "properties" in inner:
            yield from _fields(inner, definitions, path)
            continue
        if _told_by_fields(members):
            for member in members:
                yield from _fields(member, definitions, path)
            continue
        yield f"`{path}`", default, str(field.get("description", "")).replace("\n", " ")
        if name == "sources" and "instructions" not in path:
            continue  # the fields of a source are listed once
        items = _resolved(field.get("items", {}), definitions)
        kinds = [_resolved(kind, definitions) for kind in items.get("oneOf", ())]
        for item in kinds if _told_by_fields(kinds) else [items]:
            yield from _fields(item, definitions, f"{path}[]")


def _told_by_fields(members: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the members of a union are told apart by which fields they have, not by the value of one."""
    return bool(members) and not any("const" in field for member in members for field in member["properties"].values())


def _of_spec(spec: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    schema = spec.model_json_schema()
    yield from _fields(schema, schema.get("$defs", {}), "")


def _common(fields: Sequence[Sequence[tuple[str, str, str]]]) -> list[tuple[str, str, str]]:
    """Fields that all have, in the order of the first."""
    return [row for row in fields[0] if all(row in other for other in fields)]


def _resolved(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    only = options[0] if len(options) == 1 else field
    return definitions[only["$ref"].rpartition("/")[2]] if "$ref" in only else only


def _shown(default: object) -> str:
    if isinstance(default, dict | list) and not default:
        return "-"
    return "-" if default is None else f"`{default}`"


def suites() -> str:
    """Every suite with what it measures, its metrics and where its prompts come from."""
    from evals import suite

    rows: list[list[str]] = []
    for name in suite.names():
        found = suite.suite(name)
        metrics = ", ".join(f"`{inner}` {'↑' if better == 'higher' else '↓'}" for inner, better in found.metrics.items())
        rows.append([f"`{name}` {found.version}", found.measures, metrics, f"{found.origin} {found.license}"])
    return _table(["suite, version", "measures", "metrics", "prompts"], rows)


def metric_modules() -> str:
    """Every metric module with what it says of itself first."""
    import ast

    from evals import modules

    told = {name: ast.get_docstring(ast.parse(modules.source(name))) or "" for name in modules.names()}
    return _table(
        ["module", "meaning"], [[f"`{name}`", " ".join(said.partition("\n\n")[0].split())] for name, said in told.items()]
    )
