"""The flow `continual`: a task run per stage; the matrix with its heat map as an artifact of the UI."""

import base64

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from flows.continual import lessons
from flows.continual_plan import ContinualPlan
from flows.running import failure, named, recorded, tell
from tasks.continual import PLOT_FILE, TEXT_FILE
from tasks.present import headline
from tasks.stage import Submit, artifact_key

_WORKERS = 512
"""threads that wait for inputs or a child; tasks times policies, and more"""


@flow(name="continual", flow_run_name=named("continual"), task_runner=ThreadPoolTaskRunner(max_workers=_WORKERS))  # pyright: ignore
def continual(plan: ContinualPlan, rerun: str | None = None) -> str:
    """Learn task after task, measure every task after each, and say what was forgotten.

    Args:
        plan: everything that is asked for
        rerun: a stage to build again whatever the store holds; everything else comes from the store where it can
    """
    workshop = plan.workshop()
    build = Submit(workshop, plan.name, frozenset([rerun] if rerun else ()), tell)
    with recorded("continual", plan, build):
        matrix = lessons(plan, build)
        failed = [error for name, future in build.futures.items() if (error := failure(name, future))]
        if failed:
            raise failed[0]
        ref: str = matrix.result()
        artifact = workshop.store.at(ref)
        picture = base64.b64encode((artifact.path / PLOT_FILE).read_bytes()).decode()
        page = (artifact.path / TEXT_FILE).read_text(encoding="utf-8")
        shown = f"![what was forgotten](data:image/png;base64,{picture})\n\n{page}"
        create_markdown_artifact(shown, key=artifact_key(plan.name, "forgetting-matrix"), description=headline(artifact))
    return ref
