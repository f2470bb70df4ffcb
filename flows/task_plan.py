"""The plan of a task head: labelled rows, one training, gates.  A plan file with the field `task` is one."""

from typing import Annotated

from pydantic import Field, model_validator

from evals.gates import Gate
from flows.plan_parts import Curated, ModelPlan, Part, ReleasePlan, SchedulePlan, StorePlan, models_folder
from tasks.base import BaseSpec
from tasks.chain import check_merge, check_model, merges
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import SpecError
from tasks.core.store import Store
from tasks.curate import LabelledSpec
from tasks.heads import GATED, MAJORITY, PredictSpec, TaskSpec
from tasks.judge import VerdictSpec, judged_by
from tasks.merge import MergeSpec
from tasks.release import ReleaseSpec


class TaskData(Part):
    """What is learned from, and measured on."""

    examples: Curated[LabelledSpec]


class TaskPlan(Part):
    """Everything that is asked for of a task head."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    model: ModelPlan
    data: TaskData
    task: TaskSpec
    merge: MergeSpec | None = None
    """how the model becomes one plain model; null: by the defaults, and what cannot be merged stays an adapter"""
    predict: PredictSpec = PredictSpec()
    """which held-out rows are predicted"""
    gates: tuple[Gate, ...] = Field(min_length=1)
    """on what the kind of task is measured by, alone, `against: majority`, the most frequent training label, or `champion`"""
    seed: int = Field(default=0, ge=0)
    """of the bootstrap that judges"""
    release: ReleasePlan = ReleasePlan()
    schedule: SchedulePlan | None = None
    store: StorePlan = StorePlan()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _sensible(self) -> "TaskPlan":
        """Refuse gates that nothing would measure, and a merge that cannot be, before anything is trained."""
        known = GATED[self.task.kind]
        for gate in self.gates:
            if gate.metric not in known:
                raise ValueError(f"gate {gate.metric}: {self.task.kind} is measured by {', '.join(known)}")
            if gate.against in ("base", "parent"):
                raise ValueError(
                    f"gate {gate.metric}: the head is new, so {gate.against} has none to compare with; use against: {MAJORITY} "
                    "or champion, or a bound alone"
                )
            if gate.against == MAJORITY and self.task.kind == "question_answering":
                raise ValueError(f"gate {gate.metric}: no answer is the most frequent one; leave against out, or use champion")
        try:
            check_model("task", self.task.method, self.model.config())
            if self.merge:
                check_merge(self.task.method, config=self.model.config())
        except SpecError as error:
            raise ValueError(f"task: {error}") from error
        return self

    @property
    def merges(self) -> bool:
        """Whether the model is merged before it is measured: there is an adapter, and it can be."""
        return merges(self.task.method, self.model.config())

    def base(self) -> BaseSpec:
        """What decides the base model, which needs neither a chat template nor to write text."""
        return self.model.spec().model_copy(update={"chat": False})

    @property
    def challenges(self) -> bool:
        """Whether a gate compares the candidate with the champion."""
        return any(gate.meets_champion for gate in self.gates)

    def judge(self, champion: str | None = None) -> VerdictSpec:
        """What the verdict is decided by; `champion`: key of the release that is met, if one is."""
        return judged_by(self.gates, self.seed, champion)

    def card(self) -> ReleaseSpec:
        """What the release says of itself."""
        return ReleaseSpec(name=self.name, **self.release.model_dump(exclude={"channel", "review_days"}))

    def workshop(self) -> Workshop:
        """The store and the model cache this plan builds with."""
        return Workshop(Store(self.store.root, self.store.remote), models_folder(), self.execution)
