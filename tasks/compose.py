"""The compose stage: several low-rank adapters of one base, weighted, as one adapter of that base.  Imports no torch."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, field_validator, model_validator

from tasks.base import on_base
from tasks.core.contract import Stage
from tasks.core.errors import SpecError
from tasks.core.files import file_digest, tree
from tasks.core.spec import Spec
from tasks.policy import ADAPTERS, MODEL, PolicyRecord, read_record

PART = "part_"
"""inputs of this name, numbered from 0, are the policies to compose"""
How: TypeAlias = Literal[
    "cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
]  # fmt: skip
EQUAL_RANKS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
"""ways that work on the factors themselves, which must have one shape"""
ADDS = ("lora", "qlora", "lora_plus", "rslora", "pissa", "olora", "loftq")
"""methods whose adapters rest as a plain low-rank update, W + s B A"""


class ComposeSpec(Spec):
    """Put several adapters of one base together, each with a weight, as one."""

    weights: tuple[float, ...] = Field(min_length=2)
    """of each part, in order; a negative one takes away what the part learned"""
    how: How = "cat"
    """`cat` is the exact weighted sum, of the ranks' sum; `svd` the nearest to it of a given rank; `linear` adds the factors,
    which is cheap and rough; `ties` (arXiv:2306.01708), `dare` (arXiv:2311.03099) and `magnitude_prune` drop numbers first"""
    rank: PositiveInt | None = None
    """of what the `svd` ways write; null: the largest rank of the parts"""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """share of each part's numbers that `ties`, `dare` and `magnitude_prune` keep"""
    sign: Literal["total", "frequency"] = "total"
    """how `ties` elects a sign: by summed size, or by count"""
    seed: NonNegativeInt = 0
    """of what `dare` drops"""
    tolerance: NonNegativeFloat = 1e-3
    """largest allowed distance of any logit, `cat` against the sum of the separate updates; of the others it is written down"""

    @field_validator("weights")
    @classmethod
    def _no_zero(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if 0 in weights:
            raise ValueError("a weight of 0 leaves its part out; leave the part out instead")
        return weights

    @model_validator(mode="after")
    def _rank_is_svds(self) -> "ComposeSpec":
        if self.rank and not self.how.endswith("svd"):
            ways = "the ranks' sum" if self.how == "cat" else "that of the parts"
            raise ValueError(f"rank: {self.how} has no rank of its own, it is {ways}; use svd, or leave rank out")
        return self


def check_parts(parts: Mapping[str, Path], how: How) -> PolicyRecord:
    """The record of the first of `parts` (name -> policy).  Raises SpecError, in a sentence, where they cannot be composed."""
    first, *others = parts
    records = {name: read_record(policy) for name, policy in parts.items()}
    for name, record in records.items():
        _composable(name, record)
    for name in others:
        _same_ground(parts, records, first, name)
    ranks = {name: int(_config(parts[name], record)["r"]) for name, record in records.items()}
    if how in EQUAL_RANKS and len(set(ranks.values())) > 1:
        said = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        raise SpecError(f"compose {how}: it adds the factors, so ranks must be equal, and {said}; use cat or svd")
    return records[first]


def _composable(name: str, record: PolicyRecord) -> None:
    if record.task != "policy":
        raise SpecError(f"{name}: a model for {record.task.replace('_', ' ')}; only adapters of policies are composed")
    if not record.adapters:
        raise SpecError(f"{name}: it has no adapter of its own to compose; give a policy before its merge, or train with lora")
    if (method := record.chain[-1].method) not in ADDS:
        why = "its magnitudes belong to its own update" if method == "dora" else "it is no low-rank update of the weights"
        raise SpecError(f"{name}: trained with {method}, which cannot be added to others ({why}); use one of {', '.join(ADDS)}")


def _same_ground(parts: Mapping[str, Path], records: Mapping[str, PolicyRecord], one: str, two: str) -> None:
    """Raise SpecError unless the last adapters of two policies lie on the same weights."""
    a, b = records[one], records[two]
    if a.base.files != b.base.files:
        raise SpecError(
            f"{one} lies on {a.base.name} ({a.base.revision[-12:]}) and {two} on {b.base.name} ({b.base.revision[-12:]}); only "
            "adapters of one base can be composed"
        )
    if a.quantization != b.quantization:
        four, whole = (one, two) if a.quantization else (two, one)
        raise SpecError(f"{four} was trained on its base in 4 bits and {whole} was not; train both on the same, or merge them")
    below = [f"{ADAPTERS}/{name}" for name in a.adapters[:-1]]
    differs = "adapters below" if a.adapters[:-1] != b.adapters[:-1] else None
    for what in (MODEL, *below):
        if not differs and _content(parts[one] / what) != _content(parts[two] / what):
            differs = what
    if differs:
        raise SpecError(
            f"{one} and {two} do not lie on the same weights (their {differs} differ); compose policies that were trained from "
            "the same one"
        )


def _content(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in tree(folder)} if folder.is_dir() else {}


def _config(policy: Path, record: PolicyRecord) -> dict[str, Any]:
    return json.loads((policy / ADAPTERS / record.adapters[-1] / "adapter_config.json").read_text(encoding="utf-8"))


COMPOSE = Stage("compose", 1, "policy", partial(on_base, "compose"), heavy=True)
"""inputs: part_0, part_1, ... (policies)"""
