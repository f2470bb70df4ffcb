"""The stage `pairwise`: whose answers a language model behind an endpoint prefers, each pair asked about in both orders.

The endpoint is the environment's (`evals.judge_client`).  It is no function of what it is asked, so the artifact is the record: a
pair is asked about once, and what was judged before a run died is not asked again.
"""

from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, NonNegativeFloat

from evals import suite
from evals.judge_client import Judge
from evals.pairwise import SYSTEM, compared, question, read_verdict
from evals.suite import Settings
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import DataError
from tasks.core.spec import Json, Spec, to_json
from tasks.core.stop import check
from tasks.judging import ASKS, Journal, at_once
from tasks.suites import write_suite_scores
from tasks.tables import ANSWERS_FILE, PROMPTS_FILE, read_rows, score

_JOURNAL = "compared.jsonl"
ORDERS = ("12", "21")
"""the candidate's answer first, and second"""


class PairJudge(Spec):
    """A language model that compares answers."""

    model: str = Field(min_length=1)
    """the name that the endpoint, which the environment names, knows it by"""
    instruction: str = Field(
        default="The better answer does what was asked, is right, and is clear and no longer than it must be.", min_length=1
    )
    """what the better answer is, in a sentence or more"""
    temperature: NonNegativeFloat | None = 0.0
    """of the judge; null: what the endpoint takes by itself"""
    unread_budget: Annotated[float, Field(ge=0, le=1)] = 0.05
    """share of pairs that may stay without a verdict because the judge gives none, before the stage fails"""


class PairwiseSpec(Spec):
    """Whose answers to a suite a judge prefers."""

    suite: str
    """its name"""
    answers: Settings
    """how the answers were generated"""
    judge: PairJudge
    """who compares them"""


def pairwise(spec: PairwiseSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` and `suite.json`: wins of the candidate over the subject that the verdict's input is named after.

    Inputs: prompts (of the suite), answers_candidate, answers_other.  Equal answers tie without being asked about.
    Raises MachineError where the endpoint cannot be used, DataError where answers are unpaired or too many replies unclear.
    """
    prompts = {row["id"]: row for row in read_rows(inputs["prompts"] / PROMPTS_FILE)}
    mine, others = ({row["id"]: row["answer"] for row in read_rows(inputs[name] / ANSWERS_FILE)} for name in _ANSWERS)
    if other := sorted((mine.keys() ^ prompts.keys()) | (others.keys() ^ prompts.keys())):
        raise DataError(f"suite {spec.suite}: prompts and answers do not pair up: {len(other)} lack one, such as {other[0]}")
    journal = Journal(run.work / _JOURNAL)
    for name in prompts:
        if mine[name] == others[name]:
            journal.known |= {_item(name, order): 0.5 for order in ORDERS}
    waiting = [(name, order) for name in prompts for order in ORDERS if _item(name, order) not in journal.known]
    if waiting:
        _compare(spec, prompts, {ORDERS[0]: (mine, others), ORDERS[1]: (others, mine)}, waiting, journal, run)
    rows: list[dict[str, Any]] = []
    unread = 0
    for name, prompt in prompts.items():
        first, second = (journal.known[_item(name, order)] for order in ORDERS)
        if first is None or second is None:
            unread += 1
            continue
        found = compared(first, second)
        rows.append(score(f"{spec.suite}.{suite.WINS}", prompt, found.wins))
        rows.append(score(f"{spec.suite}.{suite.AGREED}", prompt, found.agrees))
    if unread > spec.judge.unread_budget * len(prompts):
        raise DataError(
            f"suite {spec.suite}: the judge {spec.judge.model} gave no verdict on {unread} of {len(prompts)} pairs, more than "
            f"unread_budget {spec.judge.unread_budget:.0%}; its last such reply: {journal.unread or 'nothing'}"
        )
    judge = cast(dict[str, Json], to_json(spec.judge))
    write_suite_scores(out, rows, spec.suite, inputs["prompts"], cast(dict[str, Json], to_json(spec.answers)), judge)
    wins, agreed = ([row["value"] for row in part] for part in (rows[::2], rows[1::2]))
    count = max(1, len(wins))
    return {"pairs": len(wins), "unread": unread, "judge_win_rate": sum(wins) / count, "judge_agreement": sum(agreed) / count}


def _compare(
    spec: PairwiseSpec,
    prompts: dict[str, dict[str, Any]],
    shown: dict[str, tuple[dict[str, str], dict[str, str]]],
    waiting: list[tuple[str, str]],
    journal: Journal,
    run: Run,
) -> None:
    """Ask about each (prompt, order) of `waiting`; `shown`: order -> the answers shown first and second."""
    judge = Judge.from_environment()
    system = SYSTEM.format(instruction=spec.judge.instruction.strip())
    run.work.mkdir(parents=True, exist_ok=True)

    def ask(pair: tuple[str, str]) -> None:
        name, order = pair
        first, second = shown[order]
        asked = question(prompts[name]["prompt"], first[name], second[name], prompts[name]["reference"])
        for _ in range(ASKS):
            check()
            reply = judge.ask(spec.judge.model, system, asked, temperature=spec.judge.temperature)
            if (found := read_verdict(reply)) is not None:
                journal.add(_item(name, order), found)
                return
            journal.unread = " ".join(reply.split())[-120:] or "nothing"
        journal.add(_item(name, order), None)

    at_once(waiting, ask, journal, len(ORDERS) * len(prompts), run)


def _item(name: str, order: str) -> str:
    return f"{name}\n{order}"


_ANSWERS = ("answers_candidate", "answers_other")


def _texts(spec: Spec) -> dict[str, str]:
    assert isinstance(spec, PairwiseSpec)
    return {"judge": SYSTEM, f"suite {spec.suite}": suite.text(spec.suite)}


PAIRWISE = Stage("pairwise", 1, "scores", pairwise, texts=_texts)
"""inputs: prompts, answers_candidate, answers_other"""
