"""`align compare`: each method trained on the same data and budget, scored, merged, timed; then one table.

`branches` and `comparison` are the pipeline, read downward; the same lines serve Prefect and `align compare --dry-run`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.build import Build
from flows.compare_plan import ComparePlan
from flows.console import duration, out, steps_json, steps_table
from flows.execute import share, watched
from flows.explain import Explain, Step
from flows.loading import load
from flows.pipeline import measured_on, pretrained
from flows.plan import Plan
from tasks.base import BASE
from tasks.chain import merges
from tasks.compare import COMPARISON, COMPARISON_FILE, PLOT_FILE, TEXT_FILE, Compared, ComparisonSpec, part
from tasks.core.contract import Stage
from tasks.core.errors import SpecError
from tasks.core.store import Artifact
from tasks.curate import INSTRUCTIONS, PROMPTS
from tasks.measure import SCORES
from tasks.merge import MERGE, MergeSpec
from tasks.profile import PROFILE
from tasks.train import SFT


def branches(plan: Plan, build: Build) -> dict[str, Any]:
    """Everything the table is made from, by the name of its input; a branch for each method and seed."""
    asked = part_of(plan)
    base = build(BASE, plan.model.spec(), plan.model.files())
    instructions = build(INSTRUCTIONS, plan.data.instructions.spec(), plan.data.instructions.files())
    prompts = build(PROMPTS, plan.data.prompts.spec(), plan.data.prompts.files())
    held_out = {"instructions": instructions, **measured_on(plan, build)}
    start, _ = pretrained(plan, build, base)

    made = {"scores/base": build(SCORES, plan.evaluation.scores, {"policy": base, **held_out}, name="scores-base")}
    for label, entry in zip(asked.labels(), asked.methods, strict=True):
        for seed in asked.seeds:

            def step(stage: Stage, spec: Any, inputs: Mapping[str, Any], label: str = label, seed: int = seed) -> Any:  # noqa: ANN401
                result = build(stage, spec, inputs, name=step_name(stage.name, label, seed, asked))
                made[part(stage.name, label, seed)] = result
                return result

            sft = step(SFT, asked.sft(entry, plan.sft, seed), {"policy": start, "data": instructions})
            step(SCORES, plan.evaluation.scores, {"policy": sft, **held_out})
            if seed != asked.seeds[0]:
                continue  # what use costs does not depend on the seed
            used = {"base": base, "unmerged": sft, "prompts": prompts}
            if merges(entry.method, plan.model.config()):
                used["merged"] = step(MERGE, plan.merge or MergeSpec(), {"policy": sft, "prompts": prompts})
            step(PROFILE, asked.profile, used)
    return made


def comparison(plan: Plan, build: Build, made: Mapping[str, Any], failed: Mapping[str, Mapping[str, str]]) -> Any:  # noqa: ANN401
    """The table of what was `made`; `failed`: label -> stage -> why."""
    asked = part_of(plan)
    rows = tuple(
        Compared(
            label=label, method=entry.method, learning_rate=entry.learning_rate, failed=dict(failed.get(label, {}))
        )
        for label, entry in zip(asked.labels(), asked.methods, strict=True)
    )  # fmt: skip
    spec = ComparisonSpec(rows=rows, seeds=asked.seeds, reference=asked.set_against(), seed=plan.seed)
    return build(COMPARISON, spec, made)


def step_name(stage: str, label: str, seed: int, asked: ComparePlan) -> str:
    """How a stage of one method is called; the seed is named where there are several."""
    return f"{stage}-{label}" + (f"-seed{seed}" if len(asked.seeds) > 1 else "")


def part_of(plan: Plan) -> ComparePlan:
    """The plan's `compare`.  Raises SpecError where it has none."""
    if plan.compare is None:
        raise SpecError(
            f"{plan.name}: the plan compares nothing; add `compare: {{methods: [full, lora, ia3]}}`, see flows/plans/compare.yaml"
        )
    return plan.compare


def execute(
    path: Path, overrides: Sequence[str], *, rerun: str | None = None, dry_run: bool = False, json_output: bool = False
) -> None:
    """Compare the methods of the plan.  Raises what the first failed method failed with, once the table is written."""
    started = time.monotonic()
    plan = load(path, overrides)
    steps = look(plan)
    if rerun is not None and rerun not in steps:
        raise SpecError(f"{rerun}: the comparison has no such stage; it has {', '.join(steps)}")
    if dry_run:
        _say(steps_json([*steps.values()])) if json_output else out().print(steps_table(plan.name, [*steps.values()]))
        return
    console = Console(stderr=True, highlight=False) if json_output else out()  # for machines, standard output holds JSON alone
    artifact, result = steps["comparison"].artifact, "up to date"
    try:
        if artifact is None or rerun is not None:
            artifact, result = None, "compared"
            with watched(plan, console):
                from flows.comparing import compare
                from flows.running import LISTENERS

                written: list[Artifact] = []
                LISTENERS.append(lambda event: _keep(written, event))
                try:
                    compare(plan, rerun)
                finally:  # a run that fails because a method did has written its table all the same
                    artifact = written[0] if written else None
                    LISTENERS.pop()
        else:
            share(plan, steps.values(), console)
    finally:
        if artifact:
            _show(plan, artifact, result, time.monotonic() - started, json_output=json_output)


def _keep(written: list[Artifact], event: Any) -> None:  # noqa: ANN401  tasks.stage.Event: its module imports Prefect
    if event.stage == COMPARISON.name and event.artifact is not None:
        written.append(event.artifact)


def look(plan: Plan) -> dict[str, Step]:
    """Every stage of the comparison as the store sees it now, by name."""
    explained = Explain(plan.workshop())
    comparison(plan, explained, branches(plan, explained), {})
    return {step.name: step for step in explained.steps}


def _show(plan: Plan, artifact: Artifact, result: str, seconds: float, *, json_output: bool) -> None:
    record = json.loads((artifact.path / COMPARISON_FILE).read_text(encoding="utf-8"))
    files = {name: str(artifact.path / name) for name in (COMPARISON_FILE, TEXT_FILE, PLOT_FILE)}
    if json_output:
        _say({"result": result, "comparison": artifact.key, "files": files, **record})
        return
    from tasks.compare_report import table

    console = out()
    console.print()
    console.print(table(record))
    console.print(
        f"[bold green]{result}[/]: comparison {artifact.key[:12]}, in {duration(seconds)}; with its plot: {files[TEXT_FILE]}"
    )


def _say(value: object) -> None:
    import typer

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
