"""The flow `compare`: a branch of task runs for each method, then the table, with what failed in its row."""

from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.compare import branches, comparison, part_of, step_name
from flows.plan import Plan
from flows.running import failure, named, recorded, tell, without_paths
from tasks.core.errors import AlignError
from tasks.stage import Submit

_WORKERS = 512
"""threads that wait for inputs or a child; four for each method and seed"""


@flow(name="compare", flow_run_name=named("compare"), task_runner=ThreadPoolTaskRunner(max_workers=_WORKERS))  # pyright: ignore
def compare(plan: Plan, rerun: str | None = None) -> str:
    """Train the methods of `plan.compare` on the same data and budget, and put what is measured into one table.

    A method that fails leaves gaps in its row; the run then fails too, once the table is written.

    Args:
        plan: everything that is asked for
        rerun: a stage to build again whatever the store holds; everything else comes from the store where it can
    """
    build = Submit(plan.workshop(), plan.name, frozenset([rerun, "comparison"] if rerun else ()), tell)
    with recorded("compare", plan, build):
        made = branches(plan, build)
        errors = {name: error for name, future in build.futures.items() if (error := failure(name, future))}
        failed = _by_method(plan, build, errors)
        kept = {name: future for name, future in made.items() if future.state.is_completed()}
        ref = comparison(plan, build, kept, failed).result()
        if errors:
            first = next(iter(errors.values()))
            raise type(first)(f"{len(failed)} of {len(part_of(plan).methods)} methods have gaps in the table; the first: {first}")
    return ref


def _by_method(plan: Plan, build: Submit, errors: dict[str, Exception]) -> dict[str, dict[str, str]]:
    """Label -> stage -> why it failed.  Raises what failed for all methods, and what nobody foresaw."""
    asked = part_of(plan)
    stages = ("sft", "scores", "merge", "profile")
    owner: dict[str, Any] = {
        step_name(stage, label, seed, asked): (label, stage)
        for label in asked.labels()
        for seed in asked.seeds
        for stage in stages
    }
    failed: dict[str, dict[str, str]] = {}
    for name, error in errors.items():
        if name not in owner or not isinstance(error, AlignError):
            raise error
        label, stage = owner[name]
        failed.setdefault(label, {})[stage] = without_paths(str(error), build.workshop)
    return failed
