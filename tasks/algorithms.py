"""How the policy is made from the SFT policy: one row per algorithm, behind the plan's field `policy.algorithm`.

A new algorithm is a spec with a stage, a row here, and a job in `tasks/training`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import Discriminator, Tag

from tasks.core.contract import Stage
from tasks.group import GRPO, RLOO, GrpoSpec, RlooSpec
from tasks.ppo import PPO, PpoSpec
from tasks.preference import DPO, KTO, ORPO, DpoSpec, KtoSpec, OrpoSpec
from tasks.rounds import OnlineDpoSpec


@dataclass(frozen=True)
class Algorithm:
    """A row of ALGORITHMS."""

    stage: Stage
    """what trains the policy; once a round, where there are rounds"""
    learns_from: Literal["pairs", "feedback", "answers"]
    """pairs of answers, answers with a verdict (or pairs), or its own answers to prompts, which are rewarded"""
    meaning: str


AnyPolicy: TypeAlias = DpoSpec | KtoSpec | OrpoSpec | OnlineDpoSpec | GrpoSpec | RlooSpec | PpoSpec

ALGORITHMS: dict[str, Algorithm] = {
    "dpo": Algorithm(DPO, "pairs", "chosen over rejected answers, near the SFT policy; no reward model in training"),
    "kto": Algorithm(KTO, "feedback", "liked over disliked answers, which need not come in pairs"),
    "orpo": Algorithm(ORPO, "pairs", "imitation and preference in one loss, without a reference"),
    "online_dpo": Algorithm(DPO, "answers", "DPO on pairs of its own answers, best and worst by reward, for several rounds"),
    "grpo": Algorithm(GRPO, "answers", "its own answers, each against the mean and deviation of those to its prompt"),
    "rloo": Algorithm(RLOO, "answers", "its own answers, each against the mean of the others to its prompt"),
    "ppo": Algorithm(
        PPO, "answers", "its own answers, each token against what a value model expects; three adapters on one base"
    ),
}

SPECS: dict[str, type[AnyPolicy]] = {spec.model_fields["algorithm"].default: spec for spec in get_args(AnyPolicy)}
"""algorithm -> what it can be asked for"""


def named(given: Any) -> str:  # noqa: ANN401  fields, or a finished spec
    """The algorithm that a `policy` asks for."""
    if isinstance(given, Mapping):
        return str(given.get("algorithm", "dpo"))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    return getattr(given, "algorithm", "dpo")


PolicySpec = Annotated[
    Annotated[DpoSpec, Tag("dpo")]
    | Annotated[KtoSpec, Tag("kto")]
    | Annotated[OrpoSpec, Tag("orpo")]
    | Annotated[OnlineDpoSpec, Tag("online_dpo")]
    | Annotated[GrpoSpec, Tag("grpo")]
    | Annotated[RlooSpec, Tag("rloo")]
    | Annotated[PpoSpec, Tag("ppo")],
    Discriminator(named),
]
"""the spec that `algorithm` names; DPO's where it names none"""
