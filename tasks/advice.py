"""Which fine-tuning method for which need: rules as data, one function that scores, and for every reason what it rests on.

Points are out of about 10: quality as published or as you measured it, moved by the rules that apply.  A method that cannot meet
the need is never ranked, and says why.
"""

import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from tasks import estimate
from tasks.core.errors import DataError
from tasks.core.store import Artifact
from tasks.memory import Device, Work, weights
from tasks.methods import METHODS, AnyMethod, StageName, learning_rate
from tasks.shapes import Shape, trained

Task = Literal["chat", "generation", "classification", "preferences"]
STAGE: Mapping[Task, StageName] = {"chat": "sft", "generation": "sft", "classification": "task", "preferences": "dpo"}
"""what a task trains"""
LENGTH: Mapping[Task, int] = {"chat": 1024, "generation": 1024, "classification": 512, "preferences": 1024}
"""tokens of a text, to start with"""
_GLOBAL_BATCH = 16
_PAGE = "methods users compare (docs/advice.md)"
_BENCHMARK = "PEFT's public benchmark: Llama-3.2-3B, MetaMathQA -> GSM8K, 5,000 steps"


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
"""the rules; docs/advice.md is generated from them"""

QUALITY: Mapping[str, tuple[float, str]] = {
    "rslora": (0.513, _BENCHMARK),
    "lora": (0.478, _BENCHMARK),
    "full": (0.472, _BENCHMARK),
    "dora": (0.469, _BENCHMARK),
    "ia3": (0.383, f"{_BENCHMARK} (0.311 to 0.455)"),
    "p_tuning": (0.350, _BENCHMARK),
    "bitfit": (0.321, _BENCHMARK),
    "prefix_tuning": (0.301, f"{_BENCHMARK} (0.186 to 0.416)"),
    "prompt_tuning": (0.200, f"{_BENCHMARK} (0.057 to 0.343)"),
    "lora_plus": (0.478, "as LoRA; its paper reports 1-2 % more (arXiv:2402.12354)"),
    "pissa": (0.475, "as LoRA (arXiv:2404.02948)"),
    "olora": (0.470, "as LoRA (arXiv:2406.01775)"),
    "qlora": (0.470, "as LoRA, within the error of its paper (arXiv:2305.14314)"),
    "loftq": (0.470, "as QLoRA (arXiv:2310.08659)"),
    "bottleneck": (0.450, "within 0.4 % of full on GLUE (arXiv:1902.00751)"),
    "p_tuning_v2": (0.301, "as prefix tuning, without its MLP (arXiv:2110.07602)"),
    "layer_norm": (0.310, "as bias-only; its paper is on multimodal models (arXiv:2312.11420)"),
    "head": (0.150, "a lower bound: features stay as they are"),
    "moe_experts": (0.472, "as full"),
    "moe_router": (0.150, "a choice among what is there"),
}
"""published accuracy, or the nearest relative's, and where it stands"""
_BEST = max(value for value, _ in QUALITY.values())


class Reason(NamedTuple):
    """Why points were given or taken."""

    points: float
    said: str
    rests_on: str


@dataclass(frozen=True)
class Advice:
    """One method for a need."""

    method: AnyMethod
    stage: StageName
    score: float
    reasons: tuple[Reason, ...]
    refused: tuple[str, ...]
    """why it does not meet the need; empty for one that is ranked"""
    memory: int
    """bytes, estimated, with the values below"""
    micro_batch: int
    checkpointing: bool
    learning_rate: float | None
    epochs: float
    max_length: int
    share: float
    """of the weights, trained"""


def advise(need: Need, comparisons: Iterable[Artifact] = ()) -> list[Advice]:
    """Every method: those that meet `need` first, best first; then the others with what stands against them."""
    seen = own_results(comparisons, need)
    found = [_one(need, name, seen) for name in METHODS]
    return sorted(found, key=lambda advice: (bool(advice.refused), -advice.score, advice.method.name))


def score(need: Need, name: str, seen: Mapping[str, "Reason"]) -> tuple[Reason, ...]:
    """Quality, and every rule that applies to method `name`: the sum of the points is its score."""
    value, source = QUALITY[name]
    quality = seen.get(name) or Reason(10 * value / _BEST, f"quality {value:.3f} of the best {_BEST:.3f}", source)
    rules = [rule for rule in RULES if name in rule.points and rule.when.holds(need)]
    return (quality, *(Reason(rule.points[name], rule.because, rule.rests_on) for rule in rules))


_LIKE = 2.0
"""a comparison speaks for models of up to so many times more or fewer weights"""


def own_results(comparisons: Iterable[Artifact], need: Need) -> dict[str, Reason]:
    """Method -> its quality by your youngest comparison on a model of like size: 10 for the best, 0 for the untrained base.

    Chat, generation and classification go by perplexity on held-out answers, preferences by held-out pairs.  Numbers of two
    comparisons, on other data and budgets, are never put on one scale.
    """
    column, untrained, sign = ("preferences", 0.5, 1.0) if need.task == "preferences" else ("answers", 1.0, -1.0)
    found: dict[str, Reason] = {}
    for artifact in comparisons:
        record: dict[str, Any] = json.loads((artifact.path / "comparison.json").read_text(encoding="utf-8"))
        weights = _weights(record)
        if weights is None or not 1 / _LIKE <= weights / need.parameters <= _LIKE:
            continue
        values: dict[str, float] = {}
        for row in record["rows"]:
            cell: dict[str, Any] = row["cells"].get(column) or {}
            if "value" in cell:
                gain = sign * (float(cell["value"]) - untrained)
                values[row["method"]["name"]] = max(gain, values.get(row["method"]["name"], gain))
        best = max(values.values(), default=0.0)
        if best <= 0:
            continue  # nothing in it got better than the base, so it ranks nothing
        found = {}
        for name, gain in values.items():
            said = f"your own comparison: {column} {untrained + sign * gain:.3f}, the best {untrained + sign * best:.3f}"
            where = f"comparison {artifact.key[:12]}, a model of {weights / 1e6:,.0f}M weights"
            found[name] = Reason(10 * max(0.0, gain) / best, said, where)
    return found


def _weights(record: Mapping[str, Any]) -> float | None:
    """Weights of the model that was compared on."""
    for row in record["rows"]:
        trained, share = (row["cells"].get(name) for name in ("trainable_parameters", "trainable_share"))
        if trained and share:
            return float(trained["value"]) / float(share["value"])
    return None


def _one(need: Need, name: str, seen: Mapping[str, Reason]) -> Advice:
    row, stage = METHODS[name], STAGE[need.task]
    method = starting(need, name)
    reasons = score(need, name, seen)
    rows, checkpointing, memory = _fitted(need, method, stage)
    refused = tuple(said for constraint in CONSTRAINTS if (said := constraint.refuses(need, name)))
    if memory > need.memory:
        refused += (
            f"needs about {memory / 1e9:.1f} GB for one row of {LENGTH[need.task]} tokens, {need.memory / 1e9:.1f} GB are there",
        )
    return Advice(
        method, stage, sum(reason.points for reason in reasons), reasons, refused, memory, rows, checkpointing,
        learning_rate(stage, method) if stage in row.learning_rate else None, _EPOCHS.of(need.rows), LENGTH[need.task],
        trained(need.shape, method, stage) / need.parameters,
    )  # fmt: skip


def _fitted(need: Need, method: AnyMethod, stage: StageName) -> tuple[int, bool, int]:
    """Micro-batch, checkpointing and bytes: the largest batch without recomputing, else with, else one row that does not fit."""
    base = Work(need.device, 1, LENGTH[need.task], 2 if stage == "dpo" else 1)
    options = [
        (rows, again) for again in (False, True) for rows in (8, 4, 2, 1) if not again or METHODS[method.name].checkpointing
    ]
    for rows, again in options:
        memory = estimate.training(need.shape, method, stage, replace(base, rows=rows, checkpointing=again)).total
        if memory <= need.memory:
            return rows, again, memory
    return 1, options[-1][1], memory  # pyright: ignore[reportPossiblyUnboundVariable]  there is an option


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


class Steps(NamedTuple):
    """A value that depends on a number of rows: `(up to, value)`, the last for all above."""

    table: Sequence[tuple[float, float]]

    def of(self, rows: float) -> float:
        """The value for `rows`."""
        return next(value for limit, value in self.table if rows < limit)


_EPOCHS = Steps(((1000, 3), (10_000, 2), (float("inf"), 1)))
_RANK = Steps(((1000, 8), (20_000, 16), (float("inf"), 64)))
_PROMPT_LENGTH = Steps(((1000, 10), (float("inf"), 20)))
STARTING: Mapping[str, tuple[str, Steps]] = {
    **dict.fromkeys(("lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora", "loftq"), ("rank", _RANK)),
    **dict.fromkeys(("prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"), ("length", _PROMPT_LENGTH)),
}
"""method -> the field that grows with the data, and how"""


def starting(need: Need, name: str) -> AnyMethod:
    """Method `name` at a size that suits the number of rows; alpha keeps its ratio to the rank, targets are all linear layers."""
    plain: Any = METHODS[name].spec()
    if name not in STARTING:
        return plain
    field, by_rows = STARTING[name]
    value = int(by_rows.of(need.rows))
    fields: dict[str, Any] = {**plain.model_dump(), field: value}
    if field == "rank":
        fields["alpha"] = plain.alpha * value / plain.rank
    kind: Any = METHODS[name].spec
    return kind.model_validate(fields)


def fragment(advice: Advice) -> str:
    """The part of a plan that asks for what was advised, as YAML."""
    import yaml

    part = {"sft": "sft", "dpo": "policy", "task": "task"}.get(advice.stage, advice.stage)
    fields = advice.method.model_dump()
    method = {name: fields[name] for name in ("name", "rank", "alpha", "length") if name in fields}
    training: dict[str, Any] = {
        "method": method, "learning_rate": advice.learning_rate, "epochs": advice.epochs,
        "global_batch": _GLOBAL_BATCH, "max_length": advice.max_length,
    }  # fmt: skip
    if part == "task":
        training = {"kind": "sequence_classification", **training}
    more = {"reward": {"method": method}} if part == "policy" else {}  # a plan has both or neither
    execution = {"micro_batch": advice.micro_batch, "gradient_checkpointing": advice.checkpointing}
    return yaml.safe_dump({**more, part: training, "execution": execution}, sort_keys=False)


def bytes_of(text: str) -> int:
    """Bytes of `24GB`, `80GiB`, `512MB`.

    >>> bytes_of("24GB"), bytes_of("1.5 GiB")
    (24000000000, 1610612736)
    """
    return int(_number(text, {"GIB": 2**30, "MIB": 2**20, "GB": 1e9, "MB": 1e6, "TB": 1e12}, "24GB"))


def weights_of(text: str) -> float:
    """Weights of `7B`, `135M`.

    >>> weights_of("7B"), weights_of("135m")
    (7000000000.0, 135000000.0)
    """
    return _number(text, {"B": 1e9, "M": 1e6}, "7B")


def _number(text: str, units: Mapping[str, float], example: str) -> float:
    plain = text.strip().upper().replace(" ", "")
    unit = next((name for name in units if plain.endswith(name)), None)
    try:
        value = float(plain.removesuffix(unit or "")) * units[unit] if unit else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise DataError(f"{text!r}: not a size; write it as {example}")
    return value
