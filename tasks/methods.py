"""Fine-tuning methods: how weights are made trainable.  A spec each, one row each in METHODS; imports no torch.

A new method is one spec here, one row here, and one builder in `tasks/training/adapters.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from tasks.core.errors import SpecError
from tasks.core.spec import Spec

StageName: TypeAlias = Literal["sft", "reward", "dpo"]


class Full(Spec):
    """Train every weight."""

    name: Literal["full"] = "full"
    """the method"""


class _LowRank(Spec):
    rank: PositiveInt = 16
    """inner dimension of each update"""
    alpha: PositiveFloat = 32.0
    """updates are scaled by alpha / rank"""
    dropout: Annotated[NonNegativeFloat, Field(lt=1)] = 0.0
    """share of an update's inputs zeroed in SFT; reward and DPO training switch it off"""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """module names that get an update; all-linear is every linear layer but the head"""

    @field_validator("targets")
    @classmethod
    def _no_head(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not targets or "lm_head" in targets:
            raise ValueError(
                f"targets {targets!r}: the head cannot be a target (its loss kernel reads the plain weight); use all-linear"
            )
        return tuple(sorted(set(targets))) if isinstance(targets, tuple) else targets


class Lora(_LowRank):
    """Train a low-rank update of the linear layers, the rest frozen."""

    name: Literal["lora"] = "lora"
    """the method"""


class Qlora(_LowRank):
    """LoRA on a base held in 4 bits (NF4, double quantisation)."""

    name: Literal["qlora"] = "qlora"
    """the method"""


Method: TypeAlias = Annotated[Full | Lora | Qlora, Field(discriminator="name")]


@dataclass(frozen=True)
class MethodRow:
    """What the pipeline must know about a method beside its spec."""

    spec: type[Spec]
    meaning: str
    """one line for a table"""
    paper: str
    """where it was published"""
    learning_rate: Mapping[StageName, float]
    """default per stage; a stage that is missing here is not supported"""
    merges_into: Literal["is the model", "base", "de-quantised base"] | None
    """what its weights can be added to, so that a plain model results"""
    quantised: bool = False
    """needs its base in 4 bits"""
    adapter: bool = True
    """kept in a folder of its own beside the base"""
    continues: bool = True
    """a later stage of the same method and shape can go on training the same adapter"""

    def describe(self) -> dict[str, str]:
        """The row as a table shows it."""
        rates = ", ".join(f"{stage} {rate:g}" for stage, rate in self.learning_rate.items())
        return {"trains": self.meaning, "merges into": self.merges_into or "-", "learning rate": rates, "source": self.paper}


METHODS: dict[str, MethodRow] = {
    "full": MethodRow(
        Full,
        "every weight; the most memory, the reference for quality",
        "-",
        {"sft": 2e-5, "reward": 1e-5, "dpo": 1e-6},
        merges_into="is the model",
        adapter=False,
    ),
    "lora": MethodRow(
        Lora,
        "a low-rank update of each linear layer; about 1-3 % of the weights",
        "arXiv:2106.09685",
        {"sft": 2e-4, "reward": 2e-4, "dpo": 2e-5},
        merges_into="base",
    ),
    "qlora": MethodRow(
        Qlora,
        "LoRA on a base in 4 bits; the least memory, slower",
        "arXiv:2305.14314",
        {"sft": 2e-4, "reward": 2e-4, "dpo": 2e-5},
        merges_into="de-quantised base",
        quantised=True,
    ),
}


def learning_rate(stage: StageName, method: Full | Lora | Qlora) -> float:
    """The default of `method` in `stage`."""
    check_stage(stage, method)
    return METHODS[method.name].learning_rate[stage]


def check_stage(stage: StageName, method: Full | Lora | Qlora) -> None:
    """Raise ValueError if `method` cannot train `stage`."""
    if stage not in METHODS[method.name].learning_rate:
        able = ", ".join(name for name, row in METHODS.items() if stage in row.learning_rate)
        raise ValueError(f"method {method.name} cannot train {stage}; use one of {able}")


def follow(quantised: bool, adapters: bool, method: Full | Lora | Qlora, *, same: bool) -> Literal["continue", "fresh"]:
    """How `method` trains on top of a policy: go on with its last adapter, or start on the policy with that merged.

    `quantised`, `adapters`: the policy's base is in 4 bits, it has adapters.  `same`: its last adapter has this method and shape.
    Raises SpecError where neither would start exactly at that policy.
    """
    row = METHODS[method.name]
    if adapters and same and row.continues:
        return "continue"
    if quantised and (adapters or not row.quantised):
        raise SpecError(
            f"method {method.name}: the policy's base is in 4 bits, and merging its adapter there would change the policy; use "
            "qlora with the same rank, alpha and targets, or merge the policy first"
        )
    if adapters and row.quantised:
        raise SpecError(
            f"method {method.name}: this policy was trained on an unquantised base, and quantising it now would change it; train "
            "SFT with qlora of the same shape too, or merge the policy first"
        )
    return "fresh"
