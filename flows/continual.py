"""`align continual`: learn task after task, measure every task after each, and say what was forgotten.

`lessons` is the pipeline, read downward; the same lines serve Prefect and `align continual --dry-run`.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.build import Build
from flows.console import duration, out, steps_json, steps_table
from flows.continual_plan import ContinualPlan
from flows.execute import share, watched
from flows.explain import Explain, Step
from flows.inspect import echo_json
from flows.loading import load_as
from tasks.base import BASE
from tasks.compose import COMPOSE, PART
from tasks.continual import (
    EARLIER,
    FORGETTING,
    FORGETTING_FILE,
    PLOT_FILE,
    REPLAY,
    TEXT_FILE,
    read_forgetting,
)
from tasks.continual_report import averages, table
from tasks.core.errors import SpecError
from tasks.core.store import Artifact
from tasks.curate import INSTRUCTIONS
from tasks.measure import SCORES
from tasks.train import SFT


def lessons(plan: ContinualPlan, build: Build) -> Any:  # noqa: ANN401  what the builder returns
    """Train task after task, score each policy on each task, put it all into one matrix."""
    base = build(BASE, plan.model.spec(), plan.model.files())
    names = [task.name for task in plan.tasks]
    data = [build(INSTRUCTIONS, task.data.spec(), task.data.files(), name=f"curate-{task.name}") for task in plan.tasks]
    policies = [base]
    for number, task in enumerate(plan.tasks):
        rows = data[number]
        if number and plan.replay:
            earlier = {f"{EARLIER}{older}": data[older] for older in range(number)}
            rows = build(REPLAY, plan.mixing(), {"data": rows, **earlier}, name=f"replay-{task.name}")
        start = base if plan.fresh else policies[-1]
        policies.append(build(SFT, plan.training(task), {"policy": start, "data": rows}, name=f"sft-{task.name}"))
    if plan.compose:
        parts = {f"{PART}{number}": policy for number, policy in enumerate(policies[1:])}
        policies.append(build(COMPOSE, plan.compose, parts))
    measured = {f"data_{number}": one for number, one in enumerate(data)}
    for i, (who, policy) in enumerate(zip(["base", *names, "composed"], policies, strict=False)):
        for j, name in enumerate(names):
            if plan.fresh and 0 < i <= len(names) and i != j + 1:
                continue  # a task is answered by its own adapter, or by the base
            inputs = {"policy": policy, "instructions": data[j]}
            measured[f"scores_{i}_{j}"] = build(SCORES, plan.scores, inputs, name=f"scores-{who}-on-{name}")
    return build(FORGETTING, plan.measuring(), measured)


def execute(
    path: Path, overrides: Sequence[str], *, rerun: str | None = None, dry_run: bool = False, json_output: bool = False
) -> None:
    """Learn the tasks of the plan as far as they are not learned yet, and show the matrix."""
    started = time.monotonic()
    plan = load_as(ContinualPlan, path, overrides)
    steps = look(plan)
    if rerun is not None and rerun not in steps:
        raise SpecError(f"{rerun}: the plan has no such stage; it has {', '.join(steps)}")
    if dry_run:
        echo_json(steps_json([*steps.values()])) if json_output else out().print(steps_table(plan.name, [*steps.values()]))
        return
    console = Console(stderr=True, highlight=False) if json_output else out()  # for machines, standard output holds JSON alone
    result = "up to date"
    if rerun is not None or any(step.artifact is None for step in steps.values()):
        with watched(plan, console):
            from flows.learning import continual

            continual(plan, rerun)
        steps, result = look(plan), "learned"
    else:
        share(plan, steps.values(), console)
    artifact = steps["forgetting"].artifact
    assert artifact is not None
    _show(artifact, result, time.monotonic() - started, json_output=json_output)


def look(plan: ContinualPlan) -> dict[str, Step]:
    """Every stage as the store sees it now, by name."""
    explained = Explain(plan.workshop())
    lessons(plan, explained)
    return {step.name: step for step in explained.steps}


def _show(artifact: Artifact, result: str, seconds: float, *, json_output: bool) -> None:
    record = read_forgetting(artifact.path)
    files = {name: str(artifact.path / name) for name in (FORGETTING_FILE, TEXT_FILE, PLOT_FILE)}
    if json_output:
        echo_json({"result": result, "forgetting": artifact.key, "files": files, **record})
        return
    console = out()
    console.print()
    console.print(table(record))
    console.print("\n".join(["(perplexity over that just after the task was learned; above 1 is forgetting)", *averages(record)]))
    console.print(
        f"[bold green]{result}[/]: forgetting {artifact.key[:12]}, in {duration(seconds)}; with its heat map: {files[PLOT_FILE]}"
    )
