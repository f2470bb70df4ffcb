"""The report's facts in words and numbers as people write them.  It neither measures nor draws."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.gates import percent, probability, shown
from evals.report import CORRECTION, noted
from tasks.charts import SAID
from tasks.core.spec import Json
from tasks.present import duration, headline, sized
from tasks.report_facts import Facts, Funnel, Step

_TONES = {"completed": "pass", "suspended": "review", "Undecided": "review", "GateError": "fail", "running": "none"}
"""status of a record -> how it is marked; every other one is a failure"""
_STOPPED = ("interrupted", "lost", "Cancelled")
STATES = {"built": "built", "cached": "from the store", "failed": "failed", "stopped": "stopped", "waiting": "not begun"}


@dataclass(frozen=True)
class Outcome:
    """How the run ended."""

    tone: str
    """`pass`, `review`, `fail` or `none`"""
    word: str
    sentence: str
    more: tuple[str, ...] = ()


def outcome(facts: Facts) -> Outcome:
    """The verdict: one sentence with its numbers, then what else was said."""
    record, verdict = facts.record, facts.verdict
    status: str = record["status"]
    tone = _TONES.get(status, "none" if status in _STOPPED else "fail")
    error = str(record.get("error") or "")
    if facts.channel and status == "completed" and facts.release and verdict:
        approval: Any = facts.release.get("approval")
        approved = (f"Approved by {approval['by']} on {when(approval['when'])}: {approval['why']}",) if approval else ()
        key = facts.release_key or ""
        if facts.points_to != key:  # rolled back before, or overtaken by another
            now = f"release {facts.points_to[:12]}" if facts.points_to else "nothing"
            where = f"Release {key[:12]} is there, and {facts.channel} points to {now}: this run did not move it"
            return Outcome(
                tone, "Released, not in its channel", f"{where}. {counted(verdict)}. {_numbers(verdict, 'pass')}", approved
            )
        where = f"{facts.channel} points to release {key[:12]}"
        return Outcome(tone, "Released", f"{where}: {counted(verdict)}. {_numbers(verdict, 'pass')}", approved)
    if verdict and tone == "review":
        word = "Waits for a person" if status == "suspended" else "A person must decide"
        asked = _numbers(verdict, "review") or "This plan asks a person even where every gate holds."
        return Outcome(tone, word, f"Not released yet: {counted(verdict)}. {asked}", (error,) if error else ())
    if verdict and tone == "fail" and status == "GateError":
        numbers = [_numbers(verdict, said) for said in ("fail", "review")]
        said = f"Nothing was released: {counted(verdict)}. {' '.join(filter(None, numbers))}".strip()
        person = () if verdict["verdict"] == "fail" else (error,)
        return Outcome(tone, "Not released", said, person)
    if status == "completed":
        last = next((step for step in reversed(facts.steps) if step.artifact), None)
        return Outcome(tone, "Completed", headline(last.artifact) if last and last.artifact else "Every stage ended well.")
    return _unfinished(facts, tone, error)


def _unfinished(facts: Facts, tone: str, error: str) -> Outcome:
    if facts.record["status"] == "running":
        return Outcome(tone, "Running", "This run had not ended when its report was written.")
    if tone == "none":
        stopped = [step.name for step in facts.steps if step.state in ("stopped", "failed")]
        return Outcome(tone, "Interrupted", f"Stopped{f' in {stopped[0]}' if stopped else ''} before it was judged.", (error,))
    failed = [step.name for step in facts.steps if step.state == "failed"]
    word = "Stopped by a check" if facts.record["status"] == "GateError" else f"{failed[0]} failed" if failed else "Failed"
    return Outcome(tone, word, error or "It failed without a word.")


def counted(verdict: Mapping[str, Any]) -> str:
    """How many gates said what.

    >>> counted({"gates": [{"verdict": "pass"}, {"verdict": "fail"}, {"verdict": "pass"}]})
    '2 of 3 gates hold, 1 failed'
    """
    counts = Counter(gate["verdict"] for gate in verdict["gates"])
    total = sum(counts.values())
    parts = [f"{counts['pass']} of {total} gate{'s' * (total != 1)} hold{'s' * (total == 1)}"]
    parts += [f"{counts[said]} {word}" for said, word in (("fail", "failed"), ("review", "left open")) if counts[said]]
    return ", ".join(parts)


def _numbers(verdict: Mapping[str, Any], said: str) -> str:
    """The gates of one verdict with what was found; those that do not hold with their interval and need."""
    chosen = [gate for gate in verdict["gates"] if gate["verdict"] == said]
    if said == "pass":
        parts = [f"{gate['metric']} {found(gate)} ({need(gate)})" for gate in chosen]
    else:
        parts = [f"{gate['metric']} is {found(gate)} {interval(gate)} and needs {need(gate)}" for gate in chosen]
    ends = {"pass": "Found: ", "fail": "Failed: ", "review": "Open: "}
    return f"{ends[said]}{'; '.join(parts)}." if parts else ""


def found(row: Mapping[str, Any]) -> str:
    """The estimate of a gate or of what is also measured."""
    return shown(row["estimate"], [row[name] for name in ("at_least", "at_most") if row.get(name) is not None])


def interval(row: Mapping[str, Any]) -> str:
    """Its interval."""
    bounds = [row[name] for name in ("at_least", "at_most") if row.get(name) is not None]
    return f"[{shown(row['low'], bounds)},\u00a0{shown(row['high'], bounds)}]"  # never broken over two lines


def need(gate: Mapping[str, Any]) -> str:
    """What a gate asks for.

    >>> need({"demand": ">= 0.5 and <= 2 against base"})
    '≥\\xa00.5 and ≤\\xa02 against base'
    """
    return gate["demand"].replace(">= ", "≥\u00a0").replace("<= ", "≤\u00a0")


def gates(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gates, a row each."""
    return [
        {
            "gate": gate, "metric": gate["metric"], "said": gate["verdict"], "word": SAID[gate["verdict"]],
            "need": need(gate), "found": found(gate), "interval": interval(gate), "level": percent(gate["level"]),
            "p": probability(gate["p"]) if gate.get("p") is not None else "", "n": f"{gate['items']:,}",
            "effect": "-" if gate["smallest_effect"] is None else f"{gate['smallest_effect']:.3g}", "note": noted(gate),
            "settle": gate.get("items_needed") if gate["verdict"] == "review" else None,
        }
        for gate in verdict["gates"]
    ]  # fmt: skip


def measured(verdict: Mapping[str, Any], *, suites: bool) -> list[dict[str, str]]:
    """What was measured beside the gates: of suites, whose metrics are called `<suite>.<metric>`, or the rest."""
    return [
        {
            "metric": row["metric"], "against": row["against"] or "", "unit": row["unit"], "better": row["better"],
            "found": "-" if "error" in row else found(row), "interval": row["error"] if "error" in row else interval(row),
            "n": "-" if "error" in row else f"{row['items']:,}", "meaning": row["meaning"],
        }
        for row in verdict["measured"] if ("." in row["metric"]) == suites
    ]  # fmt: skip


def notes(verdict: Mapping[str, Any]) -> str:
    """How the intervals were made."""
    return (
        f"Intervals are by conversation: exact for shares and wins, else by random weights ({verdict['resamples']:,} resamples, "
        f"seed {verdict['seed']}). {CORRECTION.replace('`', '')}"
    )


def tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The few numbers that a reader looks for first: (what, number, more)."""
    counts = Counter(step.state for step in facts.steps)
    made: list[tuple[str, str, str]] = []
    if facts.verdict:
        hold = sum(gate["verdict"] == "pass" for gate in facts.verdict["gates"])
        made.append(("Gates that hold", f"{hold} of {len(facts.verdict['gates'])}", counted(facts.verdict).partition(", ")[2]))
    if facts.samples:
        wins, ties, losses = facts.samples.counts
        total = wins + ties + losses
        made.append((f"Beats {facts.samples.against} on", f"{wins} of {total}", f"{losses} worse, {ties} equal"))
    made.append(("Stages built", f"{counts['built']} of {len(facts.steps)}", f"{counts['cached']} from the store"))
    if (took := elapsed(facts.record)) is not None:
        made.append(("Time", duration(took), f"from {facts.record['started'][11:16]} UTC"))
    peak = max((step.cost.peak_bytes or 0 for step in facts.steps if step.state == "built"), default=0)
    if peak:
        highest = next(step.name for step in facts.steps if step.state == "built" and step.cost.peak_bytes == peak)
        made.append(("Peak memory", sized(peak), f"in {highest}"))
    return made


def elapsed(record: Mapping[str, Any]) -> float | None:
    """Seconds from the begin of a run to its end."""
    from datetime import datetime

    ends = [record.get(name) for name in ("started", "finished")]
    began, ended = (datetime.fromisoformat(str(end)) if end else None for end in ends)
    return (ended - began).total_seconds() if began and ended else None


def when(stamp: str) -> str:
    """A time.

    >>> when("2026-11-22T08:43:19+00:00")
    '2026-11-22 08:43 UTC'
    """
    return f"{stamp[:16].replace('T', ' ')} UTC"


def funnels(facts: Facts) -> list[dict[str, Any]]:
    """The data sets, with the parts of their bars in percent."""
    return [_funnel(one) for one in facts.funnels]


def _funnel(one: Funnel) -> dict[str, Any]:
    shared = one.train is not None and one.heldout is not None and one.train + one.heldout > 0
    whole = (one.train or 0) + (one.heldout or 0)
    kept = [("train", one.train or 0, "to train on"), ("held-out", one.heldout or 0, "held out")]
    parts = [
        {"what": what, "said": said and f"{count:,} {said}", "share": 100 * one.kept / one.rows * count / (whole or 1)}
        for what, count, said in (kept if shared else [("kept", whole or 1, "")])
    ]
    parts.append({"what": "refused", "said": f"{one.refused:,} refused", "share": 100 * one.refused / one.rows})
    rules = [(rule, f"{records:,}", f"{items:,}") for rule, records, items in one.rules]
    return {
        "name": one.name, "rows": f"{one.rows:,}", "kept": f"{one.kept:,}", "percent": f"{one.kept / one.rows:.1%}",
        "refused": f"{one.refused:,}", "dropped": f"{one.dropped:,}" if one.dropped else "", "parts": parts, "rules": rules,
    }  # fmt: skip


def trained_rows(facts: Facts) -> list[dict[str, Any]]:
    """What became of the rows in each training: those that were too long, or had nothing to learn from."""
    rows: list[dict[str, Any]] = []
    for step in facts.trained:
        assert step.artifact is not None
        metrics: dict[str, Any] = {**step.artifact.metrics}
        if "rows_trained" in metrics:
            dropped: Any = metrics.get("rows_dropped") or {}
            said = ", ".join(f"{why} {dropped[why]:,}" for why in sorted(dropped))
            rows.append(
                {"stage": step.name, "rows": f"{metrics['rows']:,}", "trained": f"{metrics['rows_trained']:,}",
                 "cut": f"{metrics.get('rows_truncated') or 0:,}", "dropped": said or "0"}
            )  # fmt: skip
    return rows


def costs(facts: Facts) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each stage took, with its bar in percent of the longest, and the totals of this run."""
    known = [step for step in facts.steps if step.state != "waiting"]
    longest = max((step.cost.seconds or 0 for step in known), default=0) or 1
    largest = max((step.cost.peak_bytes or 0 for step in known), default=0) or 1
    lines = [
        {
            "name": step.name, "state": step.state, "said": STATES[step.state], "wall": duration(step.cost.seconds),
            "share": 100 * (step.cost.seconds or 0) / longest, "cpu": _busy(step.cost.cpu_seconds),
            "peak": sized(step.cost.peak_bytes), "peak_share": 100 * (step.cost.peak_bytes or 0) / largest,
            "gpu": sized(step.cost.gpu_bytes), "about": headline(step.artifact) if step.artifact else "",
            "now": step.state != "cached",
        }
        for step in facts.steps
    ]  # fmt: skip
    mine = [step.cost for step in known if step.state != "cached"]
    process: Mapping[str, Any] = facts.record.get("process") or {}
    cpu = [cost.cpu_seconds for cost in mine if cost.cpu_seconds is not None] + ([process["cpu_seconds"]] if process else [])
    totals = {
        "wall": duration(sum(cost.seconds or 0 for cost in mine)), "cpu": _busy(sum(cpu) if cpu else None),
        "peak": sized(max((cost.peak_bytes or 0 for cost in mine), default=0) or None),
        "gpu": sized(max((cost.gpu_bytes or 0 for cost in mine), default=0) or None),
        "elapsed": duration(elapsed(facts.record)), "process": process and _busy(process["cpu_seconds"]),
        "process_peak": process and sized(process["peak_bytes"]), "any_gpu": any(step.cost.gpu_bytes for step in known),
    }  # fmt: skip
    return lines, totals


def _busy(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def settings(step: Step) -> str:
    """How a training was asked for, in a line: the fields of its spec that are plain numbers and words."""
    assert step.artifact is not None
    spec: Any = step.artifact.identity["spec"]
    return ", ".join(_fields(spec))


_ASKED = (
    "method", "algorithm", "epochs", "max_steps", "iterations", "learning_rate", "global_batch", "max_length", "max_new_tokens",
    "beta", "rank", "seed",
)  # fmt: skip


def _fields(spec: Mapping[str, Any]) -> Iterator[str]:
    for name in _ASKED:
        value: Any = spec.get(name)
        if isinstance(value, dict):
            value = spec[name].get("name")
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            yield f"{name.replace('_', ' ')} {value}"


def made_with(facts: Facts) -> list[tuple[str, str]]:
    """Versions and machine of the latest artifact, and the seeds of the plan."""
    artifacts = [step.artifact for step in facts.steps if step.artifact]
    rows = [(name, str(facts.record[field])) for name, field in _RECORD if facts.record.get(field)]
    if artifacts:
        latest: Any = max(artifacts, key=lambda one: (one.created, one.key)).provenance
        machine = latest["machine"]
        rows.append(("machine", f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}"))
        rows += [("alignflow commit", str(latest["commit"]))] if latest.get("commit") else []
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in latest["versions"].items() if version)))
    if seeds := list(_seeds(facts.record["plan"])):
        rows.append(("seeds", ", ".join(seeds)))
    return rows


_RECORD = (
    ("run", "run"),
    ("called in Prefect", "called"),
    ("flow run", "flow_run"),
    ("started", "started"),
    ("finished", "finished"),
)


def _seeds(plan: Any, where: str = "") -> Iterator[str]:  # noqa: ANN401
    if isinstance(plan, Mapping):
        for name, value in plan.items():  # pyright: ignore[reportUnknownVariableType]
            if name in ("seed", "seeds") and value is not None:
                yield f"{where or 'plan'} {json.dumps(value)}"
            yield from _seeds(value, f"{where}.{name}".lstrip("."))


def digests(steps: Sequence[Step]) -> list[dict[str, Json]]:
    """The artifacts of the run."""
    return [
        {"stage": step.name, "ref": step.ref, "digest": step.artifact.digest if step.artifact else "gone since",
         "created": when(step.artifact.created) if step.artifact else ""}
        for step in steps if step.ref
    ]  # fmt: skip
