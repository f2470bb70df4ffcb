"""The part `compare` of a plan: which methods, each with its own learning rate.  Budget, data and model are those of the plan."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator, model_validator

from tasks.core.spec import Spec
from tasks.methods import Method, check_stage, learning_rate
from tasks.profile import ProfileSpec
from tasks.train import SftSpec

Label: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
_OWN = ("label", "learning_rate")
"""fields of an entry beside those of its method"""
"""fields of a mixture of experts' config.json"""


class CompareEntry(Spec):
    """A method to compare: the fields of its spec, and those below."""

    method: Method
    """how weights are made trainable; its fields stand beside the two below, or alone its name"""
    learning_rate: PositiveFloat = Field(default_factory=lambda data: learning_rate("sft", data["method"]))
    """at the peak of the schedule; null: the method's default"""
    label: Label | None = None
    """its name in the table; null: the method's, with the fields in which several of one method differ"""

    @model_validator(mode="before")
    @classmethod
    def _split(cls, raw: Any) -> Any:  # noqa: ANN401  a name, fields, or a finished entry
        fields: Any = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(fields, Mapping):
            return fields
        given: dict[str, Any] = {**fields}
        own = {name: given.pop(name) for name in _OWN if name in given}
        own = {name: value for name, value in own.items() if value is not None}
        return {**own, **(given if "method" in given else {"method": given})}

    @field_validator("method")
    @classmethod
    def _trains_sft(cls, method: Any) -> Any:  # noqa: ANN401
        check_stage("sft", method)
        return method


class ComparePlan(Spec):
    """Which methods `align compare` trains, all with the budget of `sft`, from the same model, on the same data."""

    methods: tuple[CompareEntry, ...] = Field(min_length=1)
    """a row of the table each; a method may come more than once, with other fields or another learning rate"""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    """each method is trained once with each; more than one shows how far quality varies by itself"""
    reference: str | None = None
    """label of the method that the others are set against; null: full, or else the first"""
    profile: ProfileSpec = ProfileSpec()
    """how latency in use is measured"""

    @model_validator(mode="after")
    def _told_apart(self) -> "ComparePlan":
        labels = self.labels()
        if "base" in labels:
            raise ValueError("methods: `base` is what the others are measured against; give that method another label")
        for i, label in enumerate(labels):
            if label in labels[:i]:
                raise ValueError(
                    f"methods: two are called {label}, or are equal; give them different fields, learning rates or labels"
                )
        if self.reference is not None and self.reference not in labels:
            raise ValueError(f"reference {self.reference}: no such method; there are {', '.join(labels)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one of them comes twice; each is a training of its own")
        return self

    def labels(self) -> list[str]:
        """The methods' names in the table."""
        return [entry.label or _label(entry, self.methods) for entry in self.methods]

    def set_against(self) -> str:
        """Label of the reference."""
        names = [entry.method.name for entry in self.methods]
        return self.reference or self.labels()[names.index("full") if "full" in names else 0]

    def sft(self, entry: CompareEntry, budget: SftSpec, seed: int) -> SftSpec:
        """What trains `entry`: the budget of the plan with its method and learning rate."""
        own = {"method": entry.method.model_dump(), "learning_rate": entry.learning_rate, "seed": seed}
        return SftSpec.model_validate({**budget.model_dump(), **own})


def _label(entry: CompareEntry, entries: Sequence[CompareEntry]) -> str:
    """The method's name, and for several of one method the fields in which they differ."""
    own = _flat(entry)
    others = [_flat(other) for other in entries if other.method.name == entry.method.name and not other.label]
    differing = [name for name in own if any(other[name] != own[name] for other in others)]
    said = [f"{name.replace('learning_rate', 'lr')}-{_word(own[name])}" for name in differing]
    return "-".join([entry.method.name, *said])


def _flat(entry: CompareEntry) -> dict[str, Any]:
    return {**entry.method.model_dump(), "learning_rate": entry.learning_rate}


def _word(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
