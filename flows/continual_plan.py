"""The plan of `align continual`: tasks in the order they are learned, and how much of the earlier ones is shown again."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from flows.plan_parts import Curated, ModelPlan, Part, StorePlan, models_folder
from tasks.chain import check_follow, check_model
from tasks.compose import ADDS, ComposeSpec
from tasks.continual import ForgettingSpec, ReplaySpec
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import SpecError
from tasks.core.store import Store
from tasks.curate import InstructionsSpec
from tasks.measure import ScoresSpec
from tasks.methods import METHODS
from tasks.train import SftSpec

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class TaskPlan(Part):
    """One task."""

    name: Name
    """in the matrix and in the names of its stages"""
    data: Curated[InstructionsSpec]
    """what is learned, and what is held out to measure on"""
    sft: Mapping[str, Any] = {}
    """fields of the training that differ from the plan's own `sft`"""


class ContinualPlan(Part):
    """Everything that is asked for."""

    name: Name
    model: ModelPlan
    sft: SftSpec = SftSpec()
    """method and budget of every task"""
    tasks: tuple[TaskPlan, ...] = Field(min_length=2)
    """in the order they are learned; one more at the end trains one more"""
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """share of each task's training rows that comes from the tasks before"""
    fresh: bool = False
    """give each task an adapter of its own on the base, so that none can be forgotten, instead of one policy that goes on"""
    compose: ComposeSpec | None = None
    """with `fresh`: put the adapters together in the end, and measure that as a last row"""
    scores: ScoresSpec = ScoresSpec()
    """how held-out data are measured"""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """coverage of the intervals"""
    seed: NonNegativeInt = 0
    """of the rows that are shown again, and of the bootstrap"""
    store: StorePlan = StorePlan()
    execution: Execution = Execution()

    def training(self, task: TaskPlan) -> SftSpec:
        """How `task` is trained: the plan's `sft` with the task's own fields.  Raises ValidationError."""
        return SftSpec.model_validate({**self.sft.model_dump(exclude_unset=True), **task.sft})

    def mixing(self) -> ReplaySpec:
        """Which rows of earlier tasks are shown again."""
        return ReplaySpec(share=self.replay, seed=self.seed)

    def measuring(self) -> ForgettingSpec:
        """What the matrix is made of."""
        names = tuple(task.name for task in self.tasks)
        composed = self.compose is not None
        return ForgettingSpec(tasks=names, apart=self.fresh, composed=composed, level=self.level, seed=self.seed)

    def workshop(self) -> Workshop:
        """The store and the model cache this plan builds with."""
        return Workshop(Store(self.store.root, self.store.remote), models_folder(), self.execution)

    @model_validator(mode="after")
    def _trainable(self) -> "ContinualPlan":
        names = [task.name for task in self.tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"tasks: two are called {twice[0]}; give one another name")
        specs: list[SftSpec] = []
        for task in self.tasks:
            try:
                specs.append(self.training(task))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"] if part not in METHODS)
                raise ValueError(f"tasks.{task.name}.sft.{where}: {first['msg'].removeprefix('Value error, ')}") from error
        if taken := {"base", "composed"} & set(names):
            raise ValueError(f"tasks: {taken.pop()} is a name of the pipeline's own; give the task another")
        if self.replay and "vision_config" in (self.model.config() or {}):
            raise ValueError("replay: rows with images are not mixed yet; leave replay out, or use `fresh: true`")
        for task, spec in zip(self.tasks, specs, strict=True):
            try:
                check_model("sft", spec.method, self.model.config())
            except SpecError as error:
                raise ValueError(f"tasks.{task.name}: {error}") from error
        self._apart(specs) if self.fresh else self._one_after_another(specs)
        return self

    def _apart(self, specs: list[SftSpec]) -> None:
        if self.replay:
            raise ValueError(
                "replay: with `fresh` each task has an adapter of its own and forgets nothing; leave one of them out"
            )
        for task, spec in zip(self.tasks, specs, strict=True):
            if not METHODS[spec.method.name].adapter:
                able = ", ".join(name for name, row in METHODS.items() if row.adapter and "sft" in row.learning_rate)
                raise ValueError(
                    f"tasks.{task.name}: {spec.method.name} leaves no adapter, and `fresh` needs one; use one of {able}"
                )
            if self.compose and spec.method.name not in ADDS:
                raise ValueError(
                    f"compose: {task.name} is trained with {spec.method.name}, which cannot be added; use {', '.join(ADDS)}"
                )
        if self.compose and len(self.compose.weights) != len(self.tasks):
            raise ValueError(f"compose.weights: {len(self.compose.weights)} for {len(self.tasks)} tasks; give each task one")

    def _one_after_another(self, specs: list[SftSpec]) -> None:
        if self.compose:
            raise ValueError("compose: there is one policy that goes on, and nothing to put together; add `fresh: true`")
        for task, before, after in zip(self.tasks[1:], specs, specs[1:], strict=False):
            try:
                check_follow(before.method, after.method, self.model.config())
            except SpecError as error:
                raise ValueError(f"tasks.{task.name}: {error}") from error
