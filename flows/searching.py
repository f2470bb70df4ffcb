"""The flow `search`: every trial a cached task run, side by side where the machine has places."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.plan import Plan
from flows.running import failure, named, recorded, tell, without_paths
from flows.search import refuse_unasked
from flows.search import search as search_with
from tasks.core.errors import AlignError
from tasks.search import SEARCH
from tasks.stage import Submit

_WORKERS = 256
"""threads that wait for inputs or a child; more than a bracket has stages"""


@flow(name="search", flow_run_name=named("search"), task_runner=ThreadPoolTaskRunner(max_workers=_WORKERS))  # pyright: ignore
def search(plan: Plan, rerun: str | None = None) -> str:
    """Find a fine-tuning method, its size and learning rate by successive halving.

    Args:
        plan: everything that is asked for; its `search` says what is tried
        rerun: a stage to build again whatever the store holds; everything else comes from the store where it can
    """
    workshop = plan.workshop()
    build = Submit(workshop, plan.name, frozenset([rerun, SEARCH.name] if rerun else ()), tell)

    def read(future: Any) -> Path | str:  # noqa: ANN401  a future of this builder
        name = next(name for name, known in build.futures.items() if known is future)
        training = build.futures.get(name.removeprefix("scores-"))
        if error := failure(name, future) or (training and failure(name, training)):
            if not isinstance(error, AlignError):
                raise error
            return without_paths(str(error), workshop)
        if not future.state.is_completed():  # what every trial needs is missing
            raise next(filter(None, (failure(other, known) for other, known in build.futures.items())))
        return workshop.store.at(future.result()).path

    with recorded("search", plan, build):
        done = search_with(plan, build, read)
        if error := failure("search", done):
            raise error
        if rerun:
            refuse_unasked(rerun, [*build.futures])  # before, nobody could know which stages would be asked for
        return done.result()
