"""Online DPO: sample answers from the newest policy, reward them, pair best with worst, curate, train; for several rounds.

Each round's answers, pairs and policy are artifacts.  Spec here; the rounds are laid out in `flows/rounds.py`.
"""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tasks.curate import PreferencesSpec
from tasks.generate import AnswersSpec
from tasks.judging import JudgingSpec
from tasks.pairing import PairingSpec
from tasks.preference import DpoSpec
from tasks.reading.spec import SourceSpec
from tasks.rewarding import JudgeReward, ModelReward, Rewards
from tasks.train import RowsSpec, rate


class OnlineDpoSpec(RowsSpec):
    """DPO on pairs of the policy's own answers, for several rounds (arXiv:2402.04792, arXiv:2312.11456)."""

    stage = "dpo"
    algorithm: Literal["online_dpo"] = "online_dpo"
    """how the policy is made from the SFT policy"""
    learning_rate: PositiveFloat = rate("dpo")
    beta: PositiveFloat = 0.1
    """pull to the policy that a round starts from, in 1/nats"""
    rounds: PositiveInt = 3
    """of sampling, pairing and training, each from the policy of the one before"""
    prompts: PositiveInt | None = None
    """asked in a round, others in each while they last; null: all"""
    samples: int = Field(default=4, ge=2)
    """answers to one prompt; the best and the worst become a pair"""
    rewards: Rewards = (ModelReward(),)
    """what an answer is worth: the sum of weight times value over the entries"""
    margin: NonNegativeFloat = 0.0
    """in reward; pairs must differ by more than this"""
    max_new_tokens: PositiveInt = 64
    """an answer is cut here, stop token included"""
    temperature: PositiveFloat = 1.0
    """of sampling"""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """taken off the reward of an answer that was cut"""

    @model_validator(mode="after")
    def _room_for_answers(self) -> "OnlineDpoSpec":
        if self.max_new_tokens >= self.max_length:
            raise ValueError(f"max_length {self.max_length} holds prompt and answer, and max_new_tokens is {self.max_new_tokens}")
        return self

    def sampling(self, number: int) -> AnswersSpec:
        """What is sampled in round `number`, from 1: prompts in turn, and draws of its own."""
        return AnswersSpec(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed * _ROUNDS + number,
            limit=self.prompts,
            skip=(number - 1) * (self.prompts or 0),
            samples=self.samples,
        )

    def judging(self) -> dict[int, JudgingSpec]:
        """Place in `rewards` -> what the judge there is asked."""
        judges = {number: entry for number, entry in enumerate(self.rewards) if isinstance(entry, JudgeReward)}
        return {number: JudgingSpec(**entry.model_dump(exclude={"rule", "weight"})) for number, entry in judges.items()}

    def pairing(self) -> PairingSpec:
        """How answers become pairs."""
        return PairingSpec(rewards=self.rewards, margin=self.margin, missing_eos_penalty=self.missing_eos_penalty)

    def curation(self, number: int) -> PreferencesSpec:
        """The rules for the pairs of round `number`; all is trained on, and cut by tokens as in any training."""
        source = SourceSpec.model_validate({"name": f"round-{number}", "schema": "pairs", "format": "parquet"})
        return PreferencesSpec(
            sources=(source,), heldout=0.0, over_long="keep", max_image_pixels=_ANY_SIZE, quarantine_budget=1.0, seed=self.seed
        )

    def training(self) -> DpoSpec:
        """What trains one round."""
        shared = DpoSpec.model_fields.keys() & type(self).model_fields.keys() - {"algorithm"}
        return DpoSpec.model_validate({name: getattr(self, name) for name in shared})


_ROUNDS = 1_000_003
"""more than anybody trains, so that no two seeds share the draws of a round"""
_ANY_SIZE = 2**40
"""pixels: images were judged when their prompts were curated"""
