"""Methods ranked for a need by `tasks.advice_rules`, with what each reason rests on, and a plan to start from.

Points are out of about 10: quality as published or as you measured it, moved by the rules that apply.  A method that cannot meet
the need is never ranked, and says why.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tasks import estimate
from tasks.advice_rules import CONSTRAINTS, RULES, STAGE, Need, Task
from tasks.core.errors import DataError
from tasks.core.store import Artifact
from tasks.memory import Work
from tasks.methods import METHODS, AnyMethod, StageName, learning_rate
from tasks.shapes import trained

LENGTH: Mapping[Task, int] = {"chat": 1024, "generation": 1024, "classification": 512, "preferences": 1024}
"""tokens of a text, to start with"""
_GLOBAL_BATCH = 16
_BEST = max(row.quality[0] for row in METHODS.values())


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
    value, source = METHODS[name].quality
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
