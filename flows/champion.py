"""The champion: the policy of the release that a plan's channel points to, which a challenger is measured beside.

Who it is depends on the candidate: a plan that is asked again after its release must not meet itself.  So a pipeline asks once
the candidate is known, of the channel as it stood when the run started, and only where a gate wants to know.  It asks for the
base too, before anything is trained: training keeps tokenizer and template, so what gates could not compare is known by then.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evals.estimates import metric
from evals.scores import CHAMPION
from flows.build import Champion, Meet
from flows.explain import Step
from flows.task_plan import TaskPlan
from tasks.channels import opponent, released_policy, standing
from tasks.core.contract import Stage
from tasks.core.errors import DataError, SpecError
from tasks.core.spec import Spec
from tasks.core.store import Artifact, Store
from tasks.policy import PolicyRecord, read_record

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture

    from flows.task_pipeline import AnyPlan


@dataclass(frozen=True)
class Standing:
    """The channel of a plan as it stood when this was made."""

    store: Store
    channel: str
    task: str
    """what the plan's policies are for, as their records say"""
    keys: tuple[str, ...]
    """the releases that stood, the present one last"""
    by_token: tuple[str, ...] = ()
    """metrics of the gates that compare with the champion what is counted by token"""
    by_template: tuple[str, ...] = ()
    """those of them whose tokens are of a chat"""

    @classmethod
    def of(cls, plan: "AnyPlan", store: Store) -> "Standing":
        """The channel of `plan` now; it is not even read where no gate asks for a champion."""
        task = plan.task.kind if isinstance(plan, TaskPlan) else "policy"
        keys = standing(store, plan.release.channel) if plan.challenges else []
        metrics = {gate.metric: metric(gate.metric, gate.against) for gate in plan.gates if gate.meets_champion}
        by_token = tuple(name for name, about in metrics.items() if about.by_token)
        by_template = tuple(name for name in by_token if metrics[name].by_template)
        return cls(store, plan.release.channel, task, tuple(keys), by_token, by_template)

    def against(self, candidate: Artifact | None, *, deep: bool = False) -> tuple[str, Artifact] | None:
        """Key and policy of the release that `candidate` (None while it is not built) is compared with; None if there is none.

        Raises DataError where they are damaged (all bytes are read with `deep`) or gone, SpecError for a model of another kind,
        or of another tokenizer or chat template where gates count by token what these decide.
        """
        key = opponent(self.store, self.keys, candidate.digest if candidate else "")
        if key is None:
            return None
        try:
            policy = released_policy(self.store, self.store.at(f"release/{key}"), deep=deep)
        except DataError as error:
            raise DataError(
                f"the champion that {self.channel} points to cannot be compared with: {error}; or go back with `align rollback`"
            ) from error
        record = read_record(policy.path)
        if record.task != self.task:
            raise SpecError(
                f"gate against champion: {self.channel} points to a model for {_words(record.task)}, and this plan makes one for "
                f"{_words(self.task)}; set release.channel to another channel"
            )
        if candidate and self.by_token:
            self._refuse_other_tokens(read_record(candidate.path), record, key)
        return key, policy

    def _refuse_other_tokens(self, candidate: PolicyRecord, champion: PolicyRecord, release: str) -> None:
        """Raise SpecError where a gate counts by token what is other tokens for the two."""
        if candidate.tokenizer != champion.tokenizer:
            gates, why = self.by_token, "cuts texts into other tokens than this plan's model does (their tokenizers differ)"
        elif candidate.template != champion.template:
            gates, why = self.by_template, "reads and writes answers in another chat template than this plan's model"
        else:
            return
        if gates:
            raise SpecError(
                f"gate {' and '.join(gates)} against champion: {self.channel} points to release {release[:12]}, which {why}, and "
                "this is counted by token; compare by what is not, such as reward_win_rate, preference_accuracy or a suite, or "
                "set release.channel to another channel"
            )


def looked_up(plan: "AnyPlan", store: Store) -> Meet:
    """For builders whose stages are `Step`s."""
    now = Standing.of(plan, store)

    def meet(candidate: Step) -> Champion | None:
        found = now.against(candidate.artifact)
        return found and Champion(found[0], _as_step(found[1]))

    return meet


def waited_for(plan: "AnyPlan", store: Store) -> Meet:
    """For a flow: waits for the candidate.  A champion that cannot be used is an error now, before anything is trained."""
    now = Standing.of(plan, store)
    now.against(None, deep=True)

    def meet(candidate: "PrefectFuture[str]") -> Champion | None:
        candidate.wait()
        if not candidate.state.is_completed():
            return None  # nothing is judged without a candidate
        found = now.against(store.at(candidate.result()))
        return found and Champion(*found)

    return meet


def _words(task: str) -> str:
    return "writing text" if task == "policy" else task.replace("_", " ")


def _as_step(policy: Artifact) -> Step:
    stage = Stage(policy.stage, 1, "policy", _never)
    return Step(CHAMPION, stage, Spec(), {}, None, policy, (), None)


def _never(*_: object) -> dict[str, Any]:
    raise AssertionError("a champion is built by the plan that released it")
