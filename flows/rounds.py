"""The rounds of online DPO: answers, pairs, curation, training; each round goes on from the policy of the one before."""

from typing import Any

from flows.build import Build
from tasks.rounds import OnlineDpoSpec


def rounds(asked: OnlineDpoSpec, build: Build, sft: Any, practice: Any, rewarded: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Everything that is made, by name and in order, the last round's policy last.  `rewarded`: reward_model and clearance."""
    raise NotImplementedError
