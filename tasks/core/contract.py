"""What a stage is: a pure typed function `(spec, inputs, out, run) -> metrics`, and the identity of what it builds.

Identity decides the key and is hashed; `Execution` says where and how, and never is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from tasks.core.spec import Json, Spec, canonical, sha256, to_json

Kind = Literal[
    "instructions", "preferences", "feedback", "prompts", "texts", "labelled",
    "policy", "reward_model", "answers", "scores", "verdict", "release",
    "profile", "comparison", "forgetting", "search", "health", "pairs",
]  # fmt: skip
Metrics: TypeAlias = dict[str, Json]
Inputs: TypeAlias = Mapping[str, Path]
"""input name -> directory of a finished artifact, or a raw file the plan names"""


class Execution(BaseModel):
    """Where and how, never what: nothing here may change a result beyond floating point."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one"""
    processes: PositiveInt = 1
    """processes of one training stage (one per GPU)"""
    micro_batch: PositiveInt | None = None
    """rows at once per process; default: the largest divisor of the global batch up to 8"""
    gradient_checkpointing: bool = False
    """half the memory of activations and less, a fifth to a half slower"""
    checkpoint_every: PositiveInt = 50
    """optimiser steps between checkpoints"""
    threads: PositiveInt | None = None
    """CPU threads of one child; default: all cores shared by the stages that run at once"""
    parallel: PositiveInt = 1
    """training or scoring children at once on this machine"""
    retries: int = Field(default=2, ge=0)
    """how often a stage whose machine failed is started again"""
    timeout_minutes: PositiveFloat = 24 * 60
    """a stage that takes longer is ended"""


class Progress(NamedTuple):
    """How far a stage is: `step` of `total`, with the numbers worth watching."""

    step: int
    total: int
    """0 where nobody can know it beforehand"""
    values: dict[str, float]


class Usage(NamedTuple):
    """What the processes of one child used, from its start to its end."""

    cpu_seconds: float
    """of all of them, over all cores"""
    peak_bytes: int
    """resident memory at its highest, added over processes that ran side by side"""
    gpu_bytes: int | None
    """the same of GPU memory as torch allocated it; None where no GPU was used"""

    def __add__(self, other: object) -> "Usage":
        """Of two children, one after the other."""
        if not isinstance(other, Usage):
            return NotImplemented
        gpu = [one for one in (self.gpu_bytes, other.gpu_bytes) if one is not None]
        peak = max(self.peak_bytes, other.peak_bytes)
        return Usage(self.cpu_seconds + other.cpu_seconds, peak, max(gpu, default=None))


class Cost(NamedTuple):
    """What building an artifact took.  Never part of its identity or its payload."""

    seconds: float
    """by the clock, without waiting for a place on the machine"""
    usage: Usage | None = None
    """None where no child was needed: the stage shares the process of the flow"""


@dataclass(frozen=True)
class Run:
    """What a stage gets beside its identity."""

    work: Path
    """private to this key and kept when the stage dies: checkpoints live here"""
    models: Path
    """the model cache: base models, written out once"""
    execution: Execution = field(default_factory=Execution)
    log: Callable[[str], None] = lambda line: None
    progress: Callable[[Progress], None] = lambda progress: None
    started: Callable[[], None] = lambda: None
    """called when the stage begins, after waiting for another run or for a place on the machine"""
    used: Callable[[Usage], None] = lambda usage: None
    """called with what a child took, when it has ended well"""


StageFunction: TypeAlias = Callable[..., Metrics]
"""`(spec, inputs, out, run) -> metrics`: read only `inputs`, write only under `out`, return plain JSON"""


@dataclass(frozen=True)
class Stage:
    """A kind of step.  Raise `version` when the same identity would now give another result."""

    name: str
    version: int
    kind: Kind
    function: StageFunction
    texts: Callable[[Spec], Mapping[str, str]] = lambda spec: {}
    """SQL and templates the result depends on: file name -> content"""
    heavy: bool = False
    """runs in a child process and takes a machine slot"""


@dataclass(frozen=True)
class Identity:
    """Everything that decides an artifact, and its key."""

    kind: Kind
    fields: dict[str, Json]
    key: str

    @classmethod
    def of(cls, stage: Stage, spec: Spec, digests: Mapping[str, str]) -> "Identity":
        """Identity of `stage` under `spec` on inputs with the given content `digests` (input name -> sha256)."""
        fields: dict[str, Json] = {
            "stage": stage.name,
            "version": stage.version,
            "spec": to_json(spec),
            "inputs": to_json(dict(digests)),
            "texts": {name: sha256(text) for name, text in stage.texts(spec).items()},
        }
        return cls(stage.kind, fields, sha256(canonical(fields)))
