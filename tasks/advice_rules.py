"""Which fine-tuning method for which need, as data: rules, and what a method must be able to do.

Every rule and every number says what it rests on; docs/advice.md is generated from here.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tasks.memory import Device, weights
from tasks.methods import METHODS, StageName
from tasks.shapes import Shape

Task = Literal["chat", "generation", "classification", "preferences"]
STAGE: Mapping[Task, StageName] = {"chat": "sft", "generation": "sft", "classification": "task", "preferences": "dpo"}
"""what a task trains"""
_PAGE = "methods users compare (docs/advice.md)"


@dataclass(frozen=True)
class Need:
    """What is asked for."""

    shape: Shape
    memory: int
    """bytes"""
    device: Device = "cuda"
    rows: int = 2000
    """of training data"""
    task: Task = "chat"
    latency: Literal["none", "some"] = "some"
    """time added in use that is allowed"""
    forgetting: Literal["low", "any"] = "any"
    """of what the base knows"""
    adapters: Literal["one", "many"] = "one"
    """of one base, switched in use"""

    @property
    def parameters(self) -> int:
        """Weights of the model."""
        return self.shape.parameters

    @property
    def room(self) -> float:
        """Memory over that of the weights as a frozen base."""
        return self.memory / weights(self.shape, device=self.device)


class When(NamedTuple):
    """A condition: a field of `Need` compared with a value."""

    field: str
    compare: Literal["<", ">=", "="]
    value: float | str

    def holds(self, need: Need) -> bool:
        """Whether it does."""
        return bool(_COMPARE[self.compare](getattr(need, self.field), self.value))

    def __str__(self) -> str:
        """As people read it."""
        shown = (
            self.value if isinstance(self.value, str) else f"{self.value:,g}" if self.value < 1e6 else f"{self.value / 1e9:g}B"
        )
        return f"{self.field} {self.compare} {shown}"


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {"<": operator.lt, ">=": operator.ge, "=": operator.eq}


class Rule(NamedTuple):
    """If `when` holds, methods gain or lose points, for a reason that rests on something."""

    name: str
    when: When
    points: Mapping[str, float]
    because: str
    rests_on: str


RULES: tuple[Rule, ...] = (
    Rule(
        "short of memory", When("room", "<", 1.6), {"qlora": 3, "loftq": 3},
        "a base in 4 bits leaves room for longer texts and larger batches", "arXiv:2305.14314: 33B on 24 GB",
    ),
    Rule(
        "memory to spare", When("room", ">=", 1.6), {"qlora": -1.5, "loftq": -1.5},
        "4 bits cost time and a little exactness, and the memory is there",
        "measured with this project: half of LoRA's tokens per second on SmolLM2-135M",
    ),
    Rule(
        "little data", When("rows", "<", 500),
        {"ia3": 4, "prefix_tuning": 2, "p_tuning_v2": 2, "p_tuning": 2, "prompt_tuning": 1, "full": -5},
        "few weights learn from few examples, all weights learn them by heart",
        "arXiv:2205.05638; arXiv:2101.00190, section 6.3",
    ),
    Rule(
        "much data", When("rows", ">=", 50_000),
        {"full": 2.5, "rslora": 1, "ia3": -2, "bitfit": -2, "layer_norm": -2, "prompt_tuning": -2},
        "with much data more trained weights pay", _PAGE,
    ),
    Rule(
        "very large model", When("parameters", ">=", 1e10), {"prompt_tuning": 5.5, "p_tuning": 2},
        "soft prompts come near full training from about 10 billion weights", "arXiv:2104.08691, figure 1",
    ),
    Rule(
        "small model", When("parameters", "<", 1e9), {"prompt_tuning": -2, "p_tuning": -2},
        "below a billion weights soft prompts stay far behind", "arXiv:2104.08691, figure 1",
    ),
    Rule(
        "must not forget", When("forgetting", "=", "low"),
        {"full": -3, "moe_experts": -2, "rslora": -1, "lora": 0.5, "ia3": 1, "bitfit": 1, "layer_norm": 1},
        "fewer and smaller changes forget less", "arXiv:2405.09673: LoRA learns less and forgets less",
    ),
    Rule(
        "many adapters", When("adapters", "=", "many"), {"lora": 1, "ia3": 1, "prompt_tuning": 1.5, "bottleneck": 0.5},
        "small and switched per request", _PAGE,
    ),
    Rule(
        "classification", When("task", "=", "classification"), {"bitfit": 1.5, "bottleneck": 1, "p_tuning_v2": 2, "head": 1},
        "published for understanding rather than writing", "arXiv:2106.10199; arXiv:1902.00751; arXiv:2110.07602",
    ),
    Rule(
        "text is written", When("task", "=", "generation"), {"prefix_tuning": 3},
        "a prefix steers every layer while text is written", "arXiv:2101.00190",
    ),
    Rule(
        "preferences", When("task", "=", "preferences"), {"lora": 1, "full": -1},
        "a small change stays near the reference, from which all weights drift soon",
        "arXiv:2405.09673; the learning rates of `align methods`",
    ),
    Rule(
        "low rank suffices", When("rows", "<", 5000), {"dora": 0.5, "rslora": -1.5},
        "small ranks are enough; DoRA is often above LoRA there, and rsLoRA's scale pays at high ranks",
        "arXiv:2402.09353; arXiv:2312.03732",
    ),
    Rule(
        "few steps", When("rows", "<", 1000), {"pissa": 0.75, "lora_plus": 0.5},
        "a start or a learning rate that converges faster matters while steps are few", "arXiv:2404.02948; arXiv:2402.12354",
    ),
)  # fmt: skip


class Constraint(NamedTuple):
    """What a method must be able to do for a need."""

    name: str
    refuses: Callable[[Need, str], str]
    """why method does not meet the need, or nothing"""


def _stage(need: Need, name: str) -> str:
    row, stage = METHODS[name], STAGE[need.task]
    return "" if stage in row.learning_rate else f"cannot train {need.task}: {row.refuses.get(stage, 'not supported')}"


def _latency(need: Need, name: str) -> str:
    row = METHODS[name]
    return f"adds time in use and cannot be merged: {row.keeps}" if need.latency == "none" and row.merges_into is None else ""


def _many(need: Need, name: str) -> str:
    return "leaves a whole model, not an adapter to switch" if need.adapters == "many" and not METHODS[name].adapter else ""


def _experts(need: Need, name: str) -> str:
    return "the model is no mixture of experts" if name.startswith("moe_") and not need.shape.experts else ""


CONSTRAINTS = (
    Constraint("the method trains what the task needs", _stage),
    Constraint("latency none: it merges into the model", _latency),
    Constraint("adapters many: it is an adapter", _many),
    Constraint("experts are there to be trained", _experts),
)
"""beside memory"""
