"""`align search`: successive halving over methods, their sizes and learning rates (AutoPEFT); then the winner as a plan.

Optuna proposes, the store remembers: proposals depend on the seed and on finished trials alone, so a search that was killed asks
the same questions again and finds the answers it had.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from flows.build import Build
from flows.console import duration, out, steps_json, steps_table
from flows.execute import share, watched
from flows.explain import Explain, Step
from flows.loading import load, read, relocated
from flows.pipeline import pretrained
from flows.plan import Plan
from flows.search_plan import SearchPlan
from tasks.base import BASE
from tasks.core.errors import AlignError, SpecError
from tasks.core.store import Artifact
from tasks.curate import INSTRUCTIONS, PREFERENCES
from tasks.measure import SCORES
from tasks.methods import METHODS, AnyMethod
from tasks.search import OWN, SEARCH, SEARCH_FILE, SearchSpec, Trial, better, ends, sample, value
from tasks.train import SFT, SftSpec

if TYPE_CHECKING:
    import optuna

Read = Callable[[Any], "Path | str"]
"""what a builder returned -> the folder of its artifact, or why there is none"""

_FOUND = "the method that `align search` found"
"""in the first line of a plan that it wrote"""


@dataclass
class _Tried:
    """A trial on its way through the rungs."""

    name: str
    sft: SftSpec
    trial: "optuna.Trial | None" = None
    """Optuna's; None for the plan's own method"""
    rung: int = 0
    scores: Any = None
    value: float | None = None
    failed: str | None = None

    def outcome(self) -> Trial:
        return Trial(name=self.name, sft=self.sft, rung=self.rung, failed=self.failed)


def search(plan: Plan, build: Build, read: Read) -> Any:  # noqa: ANN401  what the builder returns
    """Train, measure, drop the worse, bracket after bracket; returns the handle of the summary."""
    asked = _asked(plan)
    base = build(BASE, plan.model.spec(), plan.model.files())
    instructions = build(INSTRUCTIONS, plan.data.instructions.spec(), plan.data.instructions.files())
    start, _ = pretrained(plan, build, base)
    held = {"instructions": instructions}
    if asked.needs_preferences and plan.data.preferences:
        held["preferences"] = build(PREFERENCES, plan.data.preferences.spec(), plan.data.preferences.files())
    compared = build(SCORES, plan.evaluation.scores, {"policy": base, **held}, name="scores-base") if asked.against else None
    below = read(compared) if compared is not None else None
    if isinstance(below, str):
        raise AlignError(f"scores-base: {below}")

    def climb(bracket: Sequence[_Tried], rung: int) -> None:
        """Train and measure everyone in `bracket` on this rung, side by side."""
        for one in bracket:
            one.rung, one.sft = rung, one.sft.model_copy(update={"max_steps": asked.steps[rung]})
            trained = build(SFT, one.sft, {"policy": start, "data": instructions}, name=f"{one.name}-{asked.steps[rung]}")
            scored = f"scores-{one.name}-{asked.steps[rung]}"
            one.scores = build(SCORES, plan.evaluation.scores, {"policy": trained, **held}, name=scored)
        for one in bracket:
            found = read(one.scores)
            if isinstance(found, str):
                one.failed, one.value = found, None
            else:
                one.value = value(sample(asked.metric, asked.against, found, below))

    own = _Tried(OWN, plan.sft)
    climb([own], len(asked.steps) - 1)
    tried = [own, *_halving(plan, asked, climb)]
    spec = SearchSpec(
        metric=asked.metric, against=asked.against, steps=asked.steps, seed=plan.seed, trials=tuple(t.outcome() for t in tried)
    )
    inputs = {one.name: one.scores for one in tried if not one.failed}
    return build(SEARCH, spec, {**inputs, **({"base": compared} if compared is not None else {})})


def _halving(plan: Plan, asked: SearchPlan, climb: Callable[[Sequence[_Tried], int], None]) -> list[_Tried]:
    """Brackets of trials; on each rung the best 1 / `reduction` go on (successive halving, arXiv:1502.07943)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sign = better(asked.metric, asked.against)
    sampler = optuna.samplers.TPESampler(seed=plan.seed, n_startup_trials=asked.bracket)
    study = optuna.create_study(direction="maximize" if sign > 0 else "minimize", sampler=sampler)
    everyone: list[_Tried] = []
    while len(everyone) < asked.trials:
        bracket = [_ask(plan, asked, study) for _ in range(min(asked.bracket, asked.trials - len(everyone)))]
        everyone += bracket
        alive = bracket
        for rung in range(len(asked.steps)):
            climb(alive, rung)
            there = [one for one in alive if one.value is not None]
            for one in there:
                assert one.trial is not None and one.value is not None
                one.trial.report(one.value, asked.steps[rung])
            there.sort(key=lambda one: -sign * (one.value or 0.0))
            if rung + 1 < len(asked.steps):
                alive = there[: max(1, len(alive) // asked.reduction)]
        for one in bracket:
            _told(study, one, asked)
    return everyone


def _told(study: "optuna.Study", one: _Tried, asked: SearchPlan) -> None:
    """Let the sampler learn from a trial that ended."""
    from optuna.trial import TrialState

    assert one.trial is not None
    if one.failed:
        study.tell(one.trial, state=TrialState.FAIL)
    elif one.rung + 1 < len(asked.steps):
        study.tell(one.trial, state=TrialState.PRUNED)
    else:
        study.tell(one.trial, one.value)


def _ask(plan: Plan, asked: SearchPlan, study: "optuna.Study") -> _Tried:
    """The sampler's next proposal as a training."""
    trial = study.ask()
    by_name = {method.name: method for method in asked.methods}
    method = by_name[trial.suggest_categorical("method", list(by_name))]
    chosen: dict[str, Any] = {}
    for field, choices in asked.vary.items():
        if field in type(method).model_fields:
            place = trial.suggest_categorical(f"{method.name}.{field}", list(range(len(choices))))
            chosen[field] = choices[place]
    factor = trial.suggest_float("rate", *asked.learning_rate, log=True)
    spec = _sft(plan.sft, _resized(method, chosen), factor)
    return _Tried(f"trial-{trial.number}", spec, trial)


def _resized(method: AnyMethod, chosen: Mapping[str, Any]) -> AnyMethod:
    """`method` with the chosen fields; alpha / rank stays what it was, so that a rank does not change the learning rate too."""
    fields = {**method.model_dump(), **chosen}
    if "rank" in chosen and "alpha" not in chosen:
        fields["alpha"] = fields["alpha"] * fields["rank"] / method.model_dump()["rank"]
    return type(method).model_validate(fields)


def _sft(own: SftSpec, method: AnyMethod, factor: float) -> SftSpec:
    """The plan's SFT by `method`, at three significant digits of `factor` times that method's own rate."""
    rate = float(f"{METHODS[method.name].learning_rate['sft'] * factor:.3g}")
    return SftSpec.model_validate({**own.model_dump(), "method": method.model_dump(), "learning_rate": rate})


def winner(plan: Plan, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fields of the plan that the winner changes; None where the plan's own method won."""
    if record["winner"] == OWN:
        return None
    row = next(row for row in record["trials"] if row["name"] == record["winner"])
    method, rates = row["method"], METHODS[row["method"]["name"]].learning_rate
    factor = row["learning_rate"] / rates["sft"]
    changed: dict[str, Any] = {"sft": {"method": method, "learning_rate": row["learning_rate"]}}
    own = plan.sft.method
    for stage, spec in (("reward", plan.trained_reward), ("policy", plan.policy)):
        if spec and spec.method.name == own.name:  # a stage that went on with the SFT adapter goes on with the winner's
            rate = rates[spec.stage] * factor
            changed[stage] = {"method": method, "learning_rate": float(f"{rate:.3g}")}
    return changed


def write_winner(path: Path, overrides: Sequence[str], changed: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Write the plan at `path` as `out`, changed; it is loaded again first, so that what is written is a plan."""
    raw = read(path, overrides)
    raw.pop("search", None)
    for stage, fields in changed.items():
        raw[stage] = {**raw.get(stage, {}), **fields}
    raw["name"] = f"{raw['name']}-found"
    if out.parent.resolve() != path.parent.resolve():
        relocated(raw, path.absolute().parent)
    draft = out.with_name(f".{out.name}")
    said = f"# {path.name} with {_FOUND}.\n"
    draft.write_text(said + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        load(draft)
    except SpecError as error:
        draft.unlink()
        raise SpecError(f"the winner does not fit the rest of the plan: {error}") from error
    draft.replace(out)


def _asked(plan: Plan) -> SearchPlan:
    if plan.search is None:
        raise SpecError(
            f"{plan.name}: the plan has no `search`; add one, for example search: {{methods: [{{name: lora}}, {{name: ia3}}]}}"
        )
    return plan.search


class _Missing(Exception):
    """Something is still to be built."""


def execute(
    path: Path,
    overrides: Sequence[str],
    out_path: Path | None,
    *,
    rerun: str | None = None,
    dry_run: bool = False,
    json_output: bool = False,
) -> None:
    """Search, print every trial, and write the winner as a plan; with `rerun`, that stage is built afresh."""
    started = time.monotonic()
    plan = load(path, overrides)
    console = Console(stderr=True, highlight=False) if json_output else out()
    target = target_of(path, out_path)
    found, steps = look(plan)
    if rerun is not None:
        known = [step.name for step in steps]
        refuse_unasked(rerun, known, [] if found else _possible(_asked(plan)))
    if dry_run:
        return _dry(plan, steps, json_output=json_output)
    how = "up to date"
    if found is None or rerun is not None:
        with watched(plan, console):
            from flows.searching import search as run

            ref = run(plan, rerun)
        found, how = plan.workshop().store.at(ref), "searched"
    else:
        share(plan, steps, console)
    record = _record(found)
    if not json_output:
        console.print(table(record))
    changed = winner(plan, record)
    if changed is not None:
        write_winner(path, overrides, changed, target)
    written = None if changed is None else target
    if json_output:
        import typer

        typer.echo(_json(record, found, written, how))
        return
    console.print(f"[bold green]{how}[/]: {_said(record, written)}, in {duration(time.monotonic() - started)}")


def target_of(path: Path, out_path: Path | None) -> Path:
    """Where the winner is written.  Raises SpecError for what could not be written, or must not be written over."""
    target = out_path or path.with_name(f"{path.stem}-found.yaml")
    if target.resolve() == path.resolve():
        raise SpecError(f"--out {target}: this is the plan itself; name another file")
    if not target.parent.is_dir():
        raise SpecError(f"--out {target}: there is no folder {target.parent}")
    if target.exists() and _FOUND not in target.read_text(encoding="utf-8").partition("\n")[0]:
        raise SpecError(f"{target}: exists already and was not written by a search; name another file with --out")
    return target


def refuse_unasked(name: str, there: Sequence[str], possible: Sequence[str] = ()) -> None:
    """Raise SpecError where stage `name` is not among those that a search asked for, nor among those that it may yet."""
    if name not in (*there, *possible):
        more = ", ... as far as they are known" if possible else ""
        raise SpecError(f"{name}: the search has no such stage; it has {', '.join(there)}{more}")


def _possible(asked: SearchPlan) -> list[str]:
    """Every stage that some course of the search would ask for."""
    trials = [f"{who}-{steps}" for who in (OWN, *map("trial-{}".format, range(asked.trials))) for steps in asked.steps]
    return [*trials, *(f"scores-{trial}" for trial in trials), SEARCH.name]


def _dry(plan: Plan, steps: Sequence[Step], *, json_output: bool) -> None:
    """Show `steps`: those that are known, as what is asked next depends on what was measured."""
    if json_output:
        import typer

        typer.echo(json.dumps(steps_json(steps), indent=2, ensure_ascii=False))
        return
    out().print(steps_table(plan.name, steps))
    if any(step.artifact is None for step in steps):
        out().print("more follow, once what is missing was measured")


def look(plan: Plan) -> tuple[Artifact | None, list[Step]]:
    """The summary of this search, if everything it needs is in the store; and its stages, as far as they are known."""
    explained = Explain(plan.workshop())

    def read(step: Step) -> Path:
        if step.artifact is None:
            raise _Missing
        return step.artifact.path

    try:
        found = search(plan, explained, read).artifact
    except _Missing:
        found = None
    return found, explained.steps


def _record(found: Artifact) -> dict[str, Any]:
    return json.loads((found.path / SEARCH_FILE).read_text(encoding="utf-8"))


def _said(record: dict[str, Any], written: Path | None) -> str:
    if written is None:
        return "the plan's own method stays the best"
    row = next(row for row in record["trials"] if row["name"] == record["winner"])
    apart = row["difference"]
    sure = "clearly apart from" if apart["real"] else "not told apart from"
    return f"{row['name']} ({row['method']['name']}) wins, {sure} the plan's own; written as {written}"


def _json(record: dict[str, Any], found: Artifact, written: Path | None, how: str) -> str:
    said = {"result": how, "artifact": f"{found.kind}/{found.key}", "plan": str(written) if written else None}
    return json.dumps({**said, **record}, indent=2)


def table(record: dict[str, Any]) -> Any:  # noqa: ANN401  a rich table
    """Every trial, the best first."""
    from rich.table import Table

    shown = Table(box=None, title=f"{record['metric']}, {record['better']} is better", title_justify="left")
    for column in ("", "trial", "method", "learning rate", "steps", "value", "interval", "less own"):
        shown.add_column(column, justify="right" if column in ("learning rate", "steps", "value") else "left")
    for row in record["trials"]:
        method = ", ".join(f"{k} {v}" if k != "name" else str(v) for k, v in row["method"].items())
        mark = "★" if row["name"] == record["winner"] else "✘" if row["failed"] else ""
        if row["value"] is None:
            shown.add_row(
                mark, row["name"], method, f"{row['learning_rate']:.3g}", str(row["steps"]), "", row["failed"] or "", ""
            )
            continue
        apart = row["difference"]
        less = f"{apart['value']:+.4g} {ends(apart['interval'], '+.4g')}" if apart else ""
        cells = (f"{row['learning_rate']:.3g}", str(row["steps"]), f"{row['value']:.4g}", ends(row["interval"]), less)
        shown.add_row(mark, row["name"], method, *(cell.replace("[", "\\[") for cell in cells))
    return shown
