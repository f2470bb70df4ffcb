"""The flow `compose`: one task run that puts adapters together."""

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.adapters import ComposePlan
from flows.running import failure, named, recorded, tell
from tasks.compose import COMPOSE, PART
from tasks.stage import Submit


@flow(name="compose", flow_run_name=named("compose"), task_runner=ThreadPoolTaskRunner(max_workers=2))  # pyright: ignore
def composed(plan: ComposePlan) -> str:
    """Put the adapters of several policies together as one policy.

    Args:
        plan: which, with what weights, and how
    """
    build = Submit(plan.workshop(), plan.name, listen=tell)
    with recorded("compose", plan, build):
        inputs = {f"{PART}{number}": ref for number, ref in enumerate(plan.policies)}
        future = build(COMPOSE, plan.spec, inputs)
        if error := failure("compose", future):
            raise error
        return future.result()
