# pyright: basic
"""Pairs of a policy's own answers: each prompt's best answer against its worst, by the sum of rewards; and their curation.

The stage `pairing` decides what is a pair, and counts every prompt that gives none.  What it writes is a source like any other:
`curate-pairs` reads it under the ordinary rules for preferences, so that its rows too are kept or in quarantine.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import NonNegativeFloat

from tasks import curate
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import DataError
from tasks.core.files import write_atomic, write_json
from tasks.core.spec import Spec
from tasks.reading.images import FOLDER
from tasks.rewarding import (
    Answer,
    AnyReward,
    JudgeReward,
    ModelReward,
    Rewards,
    check_references,
    normalised,
    total,
    values,
    wants_references,
)
from tasks.tables import ANSWERS_FILE, SCORES_FILE, answer_item, practice_prompts, read_rows

PAIRS_FILE = "pairs.parquet"
CLEARANCE_FILE = "clearance.json"
MODEL_SCORES = "scores_model"
"""input: what the reward model gave to the answers"""
_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("conversation", pa.string()),
        ("task", pa.string()),
        ("prompt", pa.list_(_TURN)),
        ("chosen", pa.list_(_TURN)),  # as turns: nothing that an answer says is read as a conversation
        ("rejected", pa.list_(_TURN)),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("chosen_sample", pa.int64()),
        ("rejected_sample", pa.int64()),
    ]
)
_WHY = {
    "tie": "all its answers are worth the same",
    "margin": "its best and worst answer differ by no more than the margin",
    "alone": "it has fewer than two different answers that are not empty",
}
"""why a prompt gives no pair"""


def judge_scores(number: int) -> str:
    """Input that holds the scores of the judge that is entry `number` of the rewards."""
    return f"scores_judge_{number}"


class PairingSpec(Spec):
    """Pair the best with the worst of several answers to a prompt."""

    rewards: Rewards
    """what an answer is worth"""
    margin: NonNegativeFloat = 0.0
    """in reward; pairs must differ by more than this"""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """taken off the reward of an answer that was cut"""


def pairing(spec: PairingSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `pairs.parquet`, a row for each prompt whose answers differ in reward, `report.json` and `report.md`.

    Raises DataError where no prompt gives a pair.
    """
    answers = read_rows(inputs["answers"] / ANSWERS_FILE)
    columns = [_values(entry, number, answers, inputs) for number, entry in enumerate(spec.rewards)]
    worth = [
        reward - (0.0 if answer["finished"] else spec.missing_eos_penalty)
        for answer, reward in zip(answers, total(spec.rewards, columns), strict=True)
    ]
    pairs, why = _pairs(answers, worth, spec.margin)
    prompts = len({answer["id"] for answer in answers})
    known = [reward for reward in worth if reward == reward]
    if not pairs:
        reasons = "; ".join(f"{count} because {_WHY[reason]}" for reason, count in sorted(why.items()))
        raise DataError(
            f"none of {prompts} prompts gives a pair: {reasons}; take more samples or a higher temperature, lower margin, or use "
            "a reward that tells these answers apart"
        )
    metrics: Metrics = {
        "prompts": prompts,
        "answers": len(answers),
        "pairs": len(pairs),
        **{f"no_pair_{reason}": why[reason] for reason in _WHY},
        "unscored": len(answers) - len(known),
        "mean_reward": _mean(known),
        "chosen_reward": _mean([pair["chosen_score"] for pair in pairs]),
        "rejected_reward": _mean([pair["rejected_score"] for pair in pairs]),
        "finished": _mean([float(answer["finished"]) for answer in answers]),
        "mean_tokens": _mean([float(answer["tokens"]) for answer in answers]),
        **{f"value_{name}": _mean([x for x in column if x == x]) for name, column in _named(spec.rewards, columns)},
    }
    _write(out, pairs, inputs["answers"])
    write_json(out / "report.json", {"metrics": metrics})
    write_atomic(out / "report.md", _markdown(metrics))
    run.log(f"{len(pairs)} pairs of {prompts} prompts; mean reward {metrics['mean_reward']:.4g}")
    return metrics


def _values(entry: AnyReward, number: int, answers: Sequence[Mapping[str, Any]], inputs: Inputs) -> Sequence[float]:
    """What `entry` gives to each answer; NaN where a judge gave no score."""
    if isinstance(entry, ModelReward):
        given = json.loads((inputs["clearance"] / CLEARANCE_FILE).read_text(encoding="utf-8"))
        scores = _scores(inputs[MODEL_SCORES], answers)
        return normalised(entry, scores, mean=given["mean"], std=given["std"])
    if isinstance(entry, JudgeReward):
        return _scores(inputs[judge_scores(number)], answers)
    references: dict[str, str | None] = {}
    if wants_references([entry]):
        asked = {answer["id"] for answer in answers}
        references = {row["id"]: row["reference"] for row in practice_prompts(inputs["prompts"]) if row["id"] in asked}
        check_references([entry], references)
    return values(entry, [Answer(a["answer"], a["tokens"], a["finished"], references.get(a["id"]), a["id"]) for a in answers])


def _scores(folder: Path, answers: Sequence[Mapping[str, Any]]) -> list[float]:
    found = {row["item"]: row["value"] for row in pq.read_table(folder / SCORES_FILE).to_pylist()}
    return [found.get(answer_item(answer), float("nan")) for answer in answers]


def _pairs(
    answers: Sequence[Mapping[str, Any]], worth: Sequence[float], margin: float
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """A pair for each prompt that gives one, in order of its id; why the others give none."""
    by_prompt: dict[str, list[tuple[Mapping[str, Any], float]]] = {}
    for answer, reward in zip(answers, worth, strict=True):
        of_prompt = by_prompt.setdefault(answer["id"], [])
        if reward == reward and answer["answer"].strip():
            of_prompt.append((answer, reward))
    pairs: list[dict[str, Any]] = []
    why: Counter[str] = Counter()
    for _, found in sorted(by_prompt.items()):
        different = _different(found)
        if len(different) < 2:
            why["alone"] += 1
            continue
        best = max(different, key=lambda one: (one[1], -_sample(one[0])))  # of equals the earlier one
        worst = min(different, key=lambda one: (one[1], _sample(one[0])))
        if best[1] == worst[1]:
            why["tie"] += 1
        elif best[1] - worst[1] <= margin:
            why["margin"] += 1
        else:
            pairs.append(_pair(best, worst))
    return pairs, why


def _different(found: Sequence[tuple[Mapping[str, Any], float]]) -> list[tuple[Mapping[str, Any], float]]:
    """Answers that say something different, each at the mean reward of those that say the same: a judge may waver."""
    same: dict[str, list[tuple[Mapping[str, Any], float]]] = {}
    for answer, reward in found:
        same.setdefault(answer["answer"].strip(), []).append((answer, reward))
    return [(group[0][0], _mean([reward for _, reward in group]) or 0.0) for group in same.values()]


def _sample(answer: Mapping[str, Any]) -> int:
    return answer.get("sample") or 0


def _pair(best: tuple[Mapping[str, Any], float], worst: tuple[Mapping[str, Any], float]) -> dict[str, Any]:
    asked = best[0]
    return {
        **{name: asked[name] for name in ("id", "conversation", "task", "prompt", "images") if name in asked},
        "chosen": [{"role": "assistant", "content": best[0]["answer"]}],
        "rejected": [{"role": "assistant", "content": worst[0]["answer"]}],
        "chosen_score": best[1],
        "rejected_score": worst[1],
        "chosen_sample": _sample(best[0]),
        "rejected_sample": _sample(worst[0]),
    }


def _write(out: Path, pairs: Sequence[Mapping[str, Any]], answers: Path) -> None:
    named = sorted({name for pair in pairs for name in pair.get("images") or ()})
    schema = pa.schema([*PAIRS, pa.field("images", pa.list_(pa.string()))]) if named else PAIRS
    table = pa.Table.from_pylist(list(pairs), schema=schema)
    pq.write_table(table, out / PAIRS_FILE, compression="zstd", version="2.6", row_group_size=100_000)
    for name in named:
        (out / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(answers / FOLDER / name, out / FOLDER / name)


def _named(rewards: Sequence[AnyReward], columns: Sequence[Sequence[float]]) -> list[tuple[str, Sequence[float]]]:
    """Each entry's values by its rule, numbered where a rule occurs again."""
    seen: Counter[str] = Counter()
    named: list[tuple[str, Sequence[float]]] = []
    for entry, column in zip(rewards, columns, strict=True):
        seen[entry.rule] += 1
        named.append((entry.rule if seen[entry.rule] == 1 else f"{entry.rule}_{seen[entry.rule]}", column))
    return named


def _mean(numbers: Sequence[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None


def _markdown(metrics: Metrics) -> str:
    """What came out, and nothing of what was asked: equal pairs under another margin are an equal artifact."""
    lines = [
        "# Pairs of the policy's own answers",
        "",
        f"{metrics['pairs']} of {metrics['prompts']} prompts give a pair: the best against the worst of their answers.",
        *(f"{metrics[f'no_pair_{reason}']} give none: {said}." for reason, said in _WHY.items() if metrics[f"no_pair_{reason}"]),
        "",
        "| | reward |",
        "|---|---:|",
        *(
            f"| {said} | {metrics[name]:.4g} |"
            for name, said in (
                ("mean_reward", f"all {metrics['answers']} answers"),
                ("chosen_reward", "chosen"),
                ("rejected_reward", "rejected"),
            )
        ),
    ]
    return "\n".join(lines) + "\n"


def curate_pairs(spec: curate.PreferencesSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """What `curate-preferences` writes, of the pairs of the policy's own answers.  Inputs: pairs.

    Raises DataError where the rules leave none.
    """
    pairs = inputs["pairs"]
    try:
        return curate.preferences(spec, {"0": pairs / PAIRS_FILE, "0.images": pairs / FOLDER}, out, run)
    except DataError as error:
        said = re.sub(
            r"^none of (\d+) records is usable as preferences: (.*); is this the right schema\?$", _NONE_LEFT, str(error)
        )
        raise DataError(said) from error


_NONE_LEFT = r"none of \1 pairs of the policy's answers is usable: \2; curate the prompts they answer, or sample otherwise"


PAIRING = Stage("pairing", 1, "pairs", pairing)
"""inputs: answers; by the rewards prompts, scores_model, clearance, scores_judge_<n>"""
CURATE_PAIRS = Stage("curate-pairs", curate.PREFERENCES.version, "preferences", curate_pairs, texts=curate.PREFERENCES.texts)
"""inputs: pairs"""
