"""The part `search` of a plan: what `align search` tries, how far, and by which metric it decides."""

import itertools
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, field_validator, model_validator

from evals.estimates import metric
from tasks.core.errors import SpecError
from tasks.core.spec import Spec
from tasks.methods import Lora, Method, check_stage


class SearchPlan(Spec):
    """What `align search` tries: methods, their sizes, and learning rates."""

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:  # noqa: ANN401  a bare name is a method with its own fields
        if not isinstance(given, list):
            return given
        items: list[Any] = [*given]
        return [{"name": item} if isinstance(item, str) else item for item in items]

    methods: tuple[Method, ...] = Field(default=(Lora(),), min_length=1)
    """each is tried; two of one name cannot be told apart"""
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """field of a method -> values to try, for those of the methods that have it: rank, length, size, targets, ..."""
    learning_rate: tuple[PositiveFloat, PositiveFloat] = (0.1, 10.0)
    """from and to, as factors on each method's own"""
    steps: tuple[PositiveInt, ...] = Field(min_length=1)
    """optimiser steps of each rung, rising"""
    trials: PositiveInt = 18
    """proposals, the plan's own method not counted"""
    bracket: PositiveInt = 9
    """trials that start side by side; later brackets learn from earlier ones"""
    reduction: Annotated[int, Field(ge=2)] = 3
    """of this many trials one goes on to the next rung"""
    metric: str = "answer_perplexity"
    """what decides, measured on held-out data"""
    against: Literal["base"] | None = None
    """what the metric compares with, where it compares"""

    @property
    def needs_preferences(self) -> bool:
        """Whether the metric looks at held-out pairs."""
        return any(raw.endswith("_logp") for _, raw in metric(self.metric, self.against).wants(self.against))

    @model_validator(mode="after")
    def _sensible(self) -> "SearchPlan":
        """Refuse what could only fail after the first training."""
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"methods: {', '.join(names)}: one of each name; vary its fields instead")
        for method in self.methods:
            check_stage("sft", method)
        for field, values in self.vary.items():
            if not values:
                raise ValueError(f"vary.{field}: nothing to choose from; give values, or leave it out")
            having = [method for method in self.methods if field in type(method).model_fields and field != "name"]
            if not having:
                raise ValueError(f"vary.{field}: none of {', '.join(names)} has such a field")
            for method, value in itertools.product(having, values):
                try:
                    type(method).model_validate({**method.model_dump(), field: value})
                except ValidationError as error:
                    said = error.errors()[0]["msg"].removeprefix("Value error, ")
                    raise ValueError(f"vary.{field}: {value!r} for {method.name}: {said}") from error
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError(f"steps: {list(self.steps)}: each rung needs more steps than the one before")
        if self.learning_rate[0] >= self.learning_rate[1]:
            raise ValueError(f"learning_rate: from {self.learning_rate[0]:g} to {self.learning_rate[1]:g} is no range")
        try:
            asked = metric(self.metric, self.against)
        except SpecError as error:
            raise ValueError(f"metric: {error}") from error
        unmeasured = [raw for _, raw in asked.wants(self.against) if raw not in ("answer_nll", "chosen_logp", "rejected_logp")]
        if asked.comparative != (self.against is not None):
            raise ValueError(f"metric {self.metric}: {'say against: base' if asked.comparative else 'it compares with nothing'}")
        if unmeasured:
            raise ValueError(
                f"metric {self.metric} needs {unmeasured[0]}, which a search does not measure; use answer_perplexity, or "
                "preference_accuracy against base"
            )
        return self
