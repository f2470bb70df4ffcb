# pyright: basic
"""The stage `search`: every trial of a search in one table, compared with the plan's own method on the same held-out items."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.estimates import Against, metric
from evals.intervals import finite
from evals.scores import Scores
from evals.statistics import Estimate, Sample, contrast
from tasks.core.contract import Metrics, Run, Stage
from tasks.core.errors import DataError
from tasks.core.files import write_json
from tasks.core.spec import Spec
from tasks.train import SftSpec

SEARCH_FILE = "search.json"
TABLE_FILE = "search.md"
LEVEL = 0.95
OWN = "own"
"""the plan's own method, which every trial is compared with"""


class Trial(Spec):
    """One thing that was tried."""

    name: str
    """`own`, or `trial-<number>`"""
    sft: SftSpec
    """with the steps of the last rung it reached"""
    rung: int
    """how far it came, from 0"""
    failed: str | None = None
    """why it has no value"""


class SearchSpec(Spec):
    """Trials and what they are judged by."""

    metric: str
    against: Against | None = None
    steps: tuple[int, ...]
    """optimiser steps of each rung"""
    trials: tuple[Trial, ...]
    seed: int = 0
    """of the resampling"""


def sample(name: str, against: Against | None, scores: Path, base: Path | None) -> Sample:
    """What `metric` estimates of the policy whose scores lie in `scores`."""
    inputs = {"scores_candidate": scores, **({"scores_base": base} if base else {})}
    return metric(name, against).sample(Scores.read(inputs), against)


def value(of: Sample) -> float:
    """The estimate without its interval."""
    return float(of.of_totals(*(column.sum() for column in of.columns)))


def better(name: str, against: Against | None) -> int:
    """1 where a higher value is better, else -1."""
    return 1 if metric(name, against).better == "higher" else -1


def search(spec: SearchSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `search.json` and `search.md`.  Inputs: scores of every trial by its name, and `base` where it is compared with."""
    samples = {t.name: sample(spec.metric, spec.against, inputs[t.name], inputs.get("base")) for t in spec.trials if not t.failed}
    own = next((trial for trial in spec.trials if trial.name == OWN), None)
    if own is None or OWN not in samples:
        raise DataError(
            f"search: the plan's own method gave no value{f' ({own.failed})' if own else ''}, so nothing compares with it"
        )
    rows = [_row(spec, trial, samples.get(trial.name), samples[OWN]) for trial in spec.trials]
    last = len(spec.steps) - 1
    finished = [row for row in rows if row["rung"] == last and row["value"] is not None]
    sign = better(spec.metric, spec.against)
    winner = max(finished, key=lambda row: (sign * row["value"], row["name"] == OWN))
    rows.sort(key=lambda row: (-row["rung"], row["value"] is None, -sign * (row["value"] or 0.0), row["name"]))
    record: dict[str, Any] = {
        "metric": spec.metric, "against": spec.against, "better": "higher" if sign > 0 else "lower", "steps": [*spec.steps],
        "winner": winner["name"], "trials": rows,
    }  # fmt: skip
    write_json(out / SEARCH_FILE, record)
    (out / TABLE_FILE).write_text(markdown(record), encoding="utf-8")
    return {"winner": winner["name"], "trials": len(rows), "value": winner["value"], "own": value(samples[OWN])}


def _row(spec: SearchSpec, trial: Trial, of: Sample | None, own: Sample) -> dict[str, Any]:
    """One trial: what it was, its value, and how far that is from the plan's own where both saw as many steps."""
    fields = json.loads(trial.sft.model_dump_json())
    row: dict[str, Any] = {
        "name": trial.name, "method": fields["method"], "learning_rate": fields["learning_rate"], "rung": trial.rung,
        "steps": spec.steps[trial.rung], "value": None, "interval": None, "difference": None, "failed": trial.failed,
    }  # fmt: skip
    if of is None:
        return row
    found = of.estimate(LEVEL, seed=spec.seed)
    row |= {"value": found.value, "interval": [finite(found.low), finite(found.high)], "items": found.items}
    if trial.name != OWN and trial.rung == len(spec.steps) - 1:
        apart = contrast(of, own).estimate(LEVEL, seed=spec.seed)
        interval = [finite(apart.low), finite(apart.high)]
        row["difference"] = {"value": apart.value, "interval": interval, "real": _clear(apart)}
    return row


def _clear(apart: Estimate) -> bool:
    return apart.low > 0 or apart.high < 0


def markdown(record: Mapping[str, Any]) -> str:
    """The table for people."""
    compared = f" against {record['against']}" if record["against"] else ""
    lines = [
        f"# Search: {record['metric']}{compared}, {record['better']} is better",
        "",
        f"Winner: **{record['winner']}**.  Rungs of {', '.join(map(str, record['steps']))} steps; 95 % intervals, paired against "
        "the plan's own method.  The winner was chosen on these held-out items, so its value here is optimistic.",
        "",
        "| trial | method | learning rate | steps | value | interval | less own | |",
        "|---|---|---:|---:|---:|---|---:|---|",
    ]
    for row in record["trials"]:
        method = ", ".join(f"{k} {_plain(v)}" if k != "name" else str(v) for k, v in row["method"].items())
        apart = row["difference"]
        difference = f"{apart['value']:+.4g} {ends(apart['interval'], '+.4g')}" if apart else ""
        note = row["failed"] or (
            "winner" if row["name"] == record["winner"] else "" if row["steps"] == record["steps"][-1] else "stopped"
        )
        shown = ("", "") if row["value"] is None else (f"{row['value']:.4g}", ends(row["interval"]))
        cells = (row["name"], method, f"{row['learning_rate']:.3g}", str(row["steps"]), *shown, difference, note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def ends(interval: Sequence[float | None], form: str = ".4g") -> str:
    """An interval for people; `?` is an end that is not known.

    >>> ends([0.12345, None])
    '[0.1235, ?]'
    """
    return f"[{', '.join('?' if end is None else format(end, form) for end in interval)}]"


def _plain(item: object) -> str:
    return "/".join(map(str, item)) if isinstance(item, list) else f"{item:g}" if isinstance(item, float) else str(item)


SEARCH = Stage("search", 3, "search", search)
"""inputs: scores by trial name; base where the metric compares with it"""
