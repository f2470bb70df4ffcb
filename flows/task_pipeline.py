"""The pipeline of a task head, and which pipeline a plan is for."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from evals.scores import CHAMPION
from flows.build import Build, Meet, nobody
from flows.loading import load_as, read
from flows.pipeline import pipeline as chat_pipeline
from flows.plan import Plan
from flows.task_plan import TaskPlan
from tasks.base import BASE
from tasks.curate import LABELLED
from tasks.heads import PREDICT, TASK
from tasks.judge import VERDICT
from tasks.merge import MERGE, MergeSpec
from tasks.release import RELEASE

AnyPlan: TypeAlias = Plan | TaskPlan
"""a plan that ends in a release"""


def task_pipeline(plan: TaskPlan, build: Build, meet: Meet = nobody) -> None:
    """Curate, train a head, merge, predict, judge, release."""
    base = build(BASE, plan.base(), plan.model.files())
    examples = build(LABELLED, plan.data.examples.spec(), plan.data.examples.files())
    task = build(TASK, plan.task, {"policy": base, "data": examples})
    policy = build(MERGE, plan.merge or MergeSpec(), {"policy": task, "data": examples}) if plan.merges else task
    scores = {"scores_candidate": build(PREDICT, plan.predict, {"policy": policy, "data": examples})}
    champion = meet(policy) if plan.challenges else None
    met = {CHAMPION: champion.policy} if champion else {}
    for who, model in met.items():
        scores[f"scores_{who}"] = build(PREDICT, plan.predict, {"policy": model, "data": examples}, name=f"predict-{who}")
    both = {"policy": policy, **met} if met else {}
    verdict = build(VERDICT, plan.judge(champion and champion.release), {**scores, **both})
    made_of = {"base": base, "examples": examples, "task": task, **met}
    build(RELEASE, plan.card(), {"policy": policy, "verdict": verdict, **made_of, **scores})


def pipeline(plan: AnyPlan, build: Build, meet: Meet = nobody) -> None:
    """Ask `build` for every stage of `plan`; `meet` finds the champion for gates that ask for one."""
    if isinstance(plan, TaskPlan):
        task_pipeline(plan, build, meet)
    else:
        chat_pipeline(plan, build, meet)


def load(path: Path, overrides: Sequence[str] = ()) -> AnyPlan:
    """Read a plan file of either kind; one with the field `task` is for a task head.  Raises SpecError as `loading.load`."""
    kind = TaskPlan if "task" in read(path, overrides) else Plan
    return load_as(kind, path, overrides)
