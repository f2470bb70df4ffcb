"""The rounds of online DPO: answers, pairs, curation, training; each round goes on from the policy of the one before."""

from typing import Any

from flows.build import Build
from tasks.generate import ANSWERS
from tasks.judging import JUDGING
from tasks.measure import REWARDS, RewardsSpec
from tasks.pairing import CURATE_PAIRS, MODEL_SCORES, PAIRING, judge_scores
from tasks.preference import DPO
from tasks.rewarding import wants_references
from tasks.rounds import OnlineDpoSpec


def rounds(asked: OnlineDpoSpec, build: Build, sft: Any, practice: Any, rewarded: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Everything that is made, by name and in order, the last round's policy last.  `rewarded`: reward_model and clearance."""
    made: dict[str, Any] = {}
    newest = sft
    for number in range(1, asked.rounds + 1):
        answers = build(ANSWERS, asked.sampling(number), {"policy": newest, "prompts": practice}, name=f"answers-round-{number}")
        scores = _scores(asked, build, number, answers, rewarded)
        judged = {"answers": answers, **scores}
        if "clearance" in rewarded:
            judged["clearance"] = rewarded["clearance"]
        if wants_references(asked.rewards):
            judged["prompts"] = practice
        pairs = build(PAIRING, asked.pairing(), judged, name=f"pairs-round-{number}")
        data = build(CURATE_PAIRS, asked.curation(number), {"pairs": pairs}, name=f"curate-round-{number}")
        newest = build(DPO, asked.training(), {"policy": newest, "data": data}, name=f"dpo-round-{number}")
        of_round = {"answers": answers, **scores, "pairs": pairs, "data": data, "dpo": newest}
        made |= {f"{name}-round-{number}": artifact for name, artifact in of_round.items()}
    return made


def _scores(asked: OnlineDpoSpec, build: Build, number: int, answers: Any, rewarded: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """What the reward model and judges give to the answers of a round, as inputs of its pairing."""
    found: dict[str, Any] = {}
    if "reward_model" in rewarded:
        given = {"reward_model": rewarded["reward_model"], "answers_policy": answers}
        found[MODEL_SCORES] = build(REWARDS, RewardsSpec(), given, name=f"rewards-round-{number}")
    for place, spec in asked.judging().items():
        several = f"-{place}" if len(asked.judging()) > 1 else ""
        found[judge_scores(place)] = build(JUDGING, spec, {"answers": answers}, name=f"judging{several}-round-{number}")
    return found
