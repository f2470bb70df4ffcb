"""The flow `align`: the pipeline as a Prefect flow run, one task run per stage, then the channel moves."""

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.champion import waited_for
from flows.execute import look, require_judge, require_vllm
from flows.reviewing import Reviewing
from flows.running import failure, named, recorded, tell
from flows.task_pipeline import AnyPlan, pipeline
from tasks.channels import promote
from tasks.stage import Submit

_WORKERS = 64
"""threads that wait for inputs or a child; more than any pipeline has stages, so that none waits for a thread"""


@flow(name="align", flow_run_name=named("align"), task_runner=ThreadPoolTaskRunner(max_workers=_WORKERS))  # pyright: ignore
def align(plan: AnyPlan, rerun: str | None = None) -> str:
    """Turn a base model and data into a released, aligned model.

    Args:
        plan: everything that is asked for
        rerun: a stage to build again whatever the store holds; everything else comes from the store where it can
    """
    workshop = plan.workshop()
    build = Submit(workshop, plan.name, frozenset([rerun] if rerun else ()), tell)
    with recorded("align", plan, build) as settle:
        review = Reviewing(plan, build, settle)
        review.hear()  # this run was suspended, and somebody decided
        steps = look(plan).values()
        require_judge(steps, rerun)
        require_vllm(steps, rerun)
        pipeline(plan, review, waited_for(plan, workshop.store))
        # one branch failed: the others still finish, and their artifacts stay
        failed = [error for name, future in build.futures.items() if (error := failure(name, future))]
        if failed:
            raise failed[0]
        release = build.futures["release"].result()
        by = f"run {flow_run.name}"  # pyright: ignore[reportAttributeAccessIssue]
        promote(workshop.store, plan.release.channel, workshop.store.at(release), why=f"released by plan {plan.name}", by=by)
    return release
