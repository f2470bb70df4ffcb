"""Tables for the documentation, from the code itself: commands, fields of a plan, methods, metrics."""

from collections.abc import Iterator, Mapping
from typing import Any


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
    from tasks.advice import RULES

    rows: list[list[str]] = []
    for rule in RULES:
        points = ", ".join(f"{name} {value:+g}" for name, value in rule.points.items())
        rows.append([rule.name, f"`{rule.when}`", points, rule.because, rule.rests_on])
    return _table(["rule", "when", "points", "because", "rests on"], rows)


def advice_quality() -> str:
    """What `align advise` takes for the quality of a method that was not measured here."""
    from tasks.advice import QUALITY

    return _table(
        ["method", "quality", "rests on"], [[f"`{name}`", f"{value:.3f}", source] for name, (value, source) in QUALITY.items()]
    )


def advice_constraints() -> str:
    """What a method must be able to do to be ranked."""
    from tasks.advice import CONSTRAINTS

    return "\n".join(f"- {constraint.name}" for constraint in CONSTRAINTS)


def plan_fields() -> str:
    """Every field of a plan with its default and meaning."""
    from flows.plan import Plan

    schema = Plan.model_json_schema()
    return _table(["field", "default", "meaning"], [list(row) for row in _fields(schema, schema["$defs"], "")])


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
        if "properties" in inner:
            yield from _fields(inner, definitions, path)
            continue
        yield f"`{path}`", default, str(field.get("description", "")).replace("\n", " ")
        if name == "sources" and "instructions" not in path:
            continue  # the fields of a source are listed once
        items = _resolved(field.get("items", {}), definitions)
        yield from _fields(items, definitions, f"{path}[]")


def _resolved(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    reference = options[0].get("$ref") if len(options) == 1 else None
    return definitions[reference.rpartition("/")[2]] if reference else field


def _shown(default: object) -> str:
    if isinstance(default, dict | list) and not default:
        return "-"
    return "-" if default is None else f"`{default}`"
