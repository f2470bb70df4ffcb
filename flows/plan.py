# pyright: basic
"""The plan: one closed YAML file, everything that is asked for, and what in it is refused before anything is built.

Parts that plans of other kinds have too are in `flows.plan_parts`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from evals import modules
from evals.estimates import metric
from evals.gates import Gate
from evals.scores import SUBJECTS
from flows.compare_plan import ComparePlan
from flows.plan_parts import Curated, ModelPlan, Part, ReleasePlan, SchedulePlan, StorePlan, at, models_folder
from flows.search_plan import SearchPlan
from flows.suite_plan import SuiteEntry, check_suites
from tasks.algorithms import ALGORITHMS, PolicySpec
from tasks.chain import check_follow, check_merge, check_model, check_served, merges
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.store import Store
from tasks.curate import FeedbackSpec, InstructionsSpec, PreferencesSpec, PromptsSpec, TextsSpec
from tasks.generate import AnswersSpec
from tasks.health import HealthSpec
from tasks.judge import VerdictSpec, judged_by
from tasks.measure import MetricsSpec, RewardsSpec, ScoresSpec
from tasks.merge import MergeSpec
from tasks.methods import check_stage
from tasks.release import ReleaseSpec
from tasks.reward_model import RewardModelSpec, reward_request
from tasks.rewarding import wants_model, wants_references
from tasks.rollouts import OnlineSpec
from tasks.train import PretrainSpec, RewardSpec, SftSpec

_REWARDS = ("reward", "chosen_reward", "rejected_reward")
_PAIRS = ("chosen_logp", "rejected_logp", "chosen_longer")


class RewardModelPlan(Part):
    """A reward model that was trained elsewhere, instead of one trained here."""

    pretrained: str
    """instead of all that: the local folder or hub id of a transformers classifier with one label, tokenizer and chat template"""
    revision: str | None = None
    """40-hex commit of a hub id"""

    def spec(self) -> RewardModelSpec:
        """What decides the reward model."""
        return reward_request(self.pretrained, self.revision, Path())[0]

    def files(self) -> dict[str, Path]:
        """The local folder, if that is what `pretrained` names."""
        return reward_request(self.pretrained, self.revision, Path())[1]

    @model_validator(mode="after")
    def _pinned(self) -> "RewardModelPlan":
        with at("pretrained"):
            self.spec()
        return self


def _origin(given: object) -> str:
    """Which member of the union a `reward` is: pydantic tells it by name, and so does `flows.loading`."""
    brought = isinstance(given, RewardModelPlan) or (isinstance(given, Mapping) and "pretrained" in given)
    return "RewardModelPlan" if brought else "RewardSpec"


RewardPlan = Annotated[
    Annotated[RewardSpec, Tag("RewardSpec")] | Annotated[RewardModelPlan, Tag("RewardModelPlan")], Discriminator(_origin)
]


class DataPlan(Part):
    """What is learned from, and what is held out to measure on."""

    instructions: Curated[InstructionsSpec]
    preferences: Curated[PreferencesSpec] | None = None
    """needed by `reward`, by policies that learn from pairs, and by whatever is measured on pairs"""
    feedback: Curated[FeedbackSpec] | None = None
    """answers that people liked or not, for `policy.algorithm: kto`; null: the pairs of `preferences`, taken apart"""
    practice: Curated[PromptsSpec] | None = None
    """prompts that a policy learns to answer from rewards; null: those of the training pairs"""
    prompts: Curated[PromptsSpec]
    texts: Curated[TextsSpec] | None = None
    """ordinary text, to see what is forgotten; needed by the metrics of text"""
    corpus: Curated[TextsSpec] | None = None
    """plain text to go on pre-training with"""


class EvaluationPlan(Part):
    """What is measured before the gates judge."""

    answers: AnswersSpec = AnswersSpec()
    scores: ScoresSpec = ScoresSpec()
    rewards: RewardsSpec = RewardsSpec()
    metrics: tuple[str, ...] = ()
    """modules of evals/metrics to report beside the gates; those that gates name are measured anyway"""
    suites: tuple[SuiteEntry, ...] = ()
    """suites of evals/suites, each with the file of its prompts, and tasks of lm-eval; gates name `<suite>.<metric>`"""

    @model_validator(mode="after")
    def _known(self) -> "EvaluationPlan":
        MetricsSpec(metrics=self.metrics)
        if self.answers.samples > 1:
            raise ValueError(f"answers.samples {self.answers.samples}: what is measured is one answer a prompt; leave it out")
        return self


class Plan(Part):
    """Everything that is asked for."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    model: ModelPlan
    data: DataPlan
    pretrain: PretrainSpec | None = None
    """before SFT, on `data.corpus`"""
    sft: SftSpec
    reward: RewardPlan | None = None
    """trained from the SFT policy, or `pretrained`; needed by policies that learn from its scores, and by gates on them"""
    policy: PolicySpec | None = None
    """from the SFT policy by `algorithm`; without it the SFT policy is the candidate, and its parent what SFT started from"""
    health: HealthSpec = HealthSpec()
    """what the reward model must show before a policy may learn from it"""
    merge: MergeSpec | None = None
    """how the policy becomes one plain model; null: by the defaults, and what cannot be merged stays an adapter"""
    evaluation: EvaluationPlan = EvaluationPlan()
    compare: ComparePlan | None = None
    """what `align compare` compares"""
    gates: tuple[Gate, ...] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    """of the bootstrap that judges"""
    release: ReleasePlan = ReleasePlan()
    schedule: SchedulePlan | None = None
    search: SearchPlan | None = None
    store: StorePlan = StorePlan()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _chain(self) -> "Plan":
        """Refuse a method that cannot go on from the policy before it, before anything is trained."""
        if (self.pretrain is None) != (self.data.corpus is None):
            raise ValueError("pretrain needs data.corpus, and data.corpus is for pretrain; give both or neither")
        self._check_data()
        later = (("reward", self.trained_reward), ("policy", self.policy))
        steps = [(where, self.sft, after) for where, after in later if after]
        for where, before, after in [("sft", self.pretrain, self.sft), *steps] if self.pretrain else steps:
            with at(where):
                check_follow(before.method, after.method, self.model.config())
        if isinstance(self.policy, OnlineSpec) and self.policy.engine == "vllm":
            with at("policy"):
                trained = [spec.method for spec in (self.pretrain, self.sft, self.policy) if spec]
                check_served(trained, self.model.config())
        if self.merge:
            with at("merge"):
                check_merge((self.policy or self.sft).method, config=self.model.config())
        return self

    def _check_data(self) -> None:
        """Refuse what has nothing to learn from."""
        data, asked = self.data, self.policy
        if self.reward and not data.preferences:
            raise ValueError("reward needs data.preferences, to learn from or to be measured on; give some, or leave it out")
        if (data.feedback or data.practice) and asked is None:
            raise ValueError("data.feedback and data.practice are for a policy; add one, or leave them out")
        if asked is None:
            return
        source = ALGORITHMS[asked.algorithm].learns_from
        if source == "pairs" and not data.preferences:
            raise ValueError(f"policy: {asked.algorithm} needs data.preferences; give some, or use another algorithm")
        if source == "feedback" and not (data.feedback or data.preferences):
            raise ValueError("policy: kto needs data.feedback or data.preferences; give some, or use another algorithm")
        if data.feedback and source != "feedback":
            raise ValueError("data.feedback is for policy.algorithm: kto; leave it out, or use that")
        if source == "answers" and not (data.practice or data.preferences):
            raise ValueError(f"policy: {asked.algorithm} needs prompts to answer: data.practice, or those of data.preferences")
        if data.practice and source != "answers":
            raise ValueError("data.practice is for policies that learn from their own answers; leave it out, or use ppo, say")
        if data.practice and (shared := set(data.practice.paths.values()) & set(data.prompts.paths.values())):
            raise ValueError(f"data.practice: {sorted(shared)[0].name} is measured on too; practise on other prompts")
        if wants_references(getattr(asked, "rewards", ())) and not data.practice:
            raise ValueError(
                "policy: its reward exact_number compares with references, which pairs lack; give prompts that have some as "
                "data.practice, or use another reward"
            )
        if wants_model(getattr(asked, "rewards", ())) and not self.reward:
            raise ValueError(
                "policy: its reward is a reward model's, and the plan has none; add reward, or name rules in rewards"
            )

    @model_validator(mode="after")
    def _fits_the_model(self) -> "Plan":
        """Refuse stages and methods that the model does not take, where its kind is known."""
        later = (("reward", self.trained_reward), ("policy", self.policy))
        stages = (("pretrain", self.pretrain), ("sft", self.sft), *later)
        for where, spec in stages:
            if spec:
                with at(where):
                    check_model(spec.stage, spec.method, self.model.config())
        return self

    @model_validator(mode="after")
    def _fit_the_plan(self) -> "Plan":
        """Refuse a method of `compare` or `search` that this model, or the policy before it, cannot take."""
        tried = [("compare", entry.method) for entry in (self.compare.methods if self.compare else ())]
        tried += [("search", method) for method in (self.search.methods if self.search else ())]
        for where, method in tried:
            with at(where):
                check_model("sft", method, self.model.config())
                if self.pretrain:
                    check_follow(self.pretrain.method, method, self.model.config())
        for method in self.search.methods if self.search else ():
            with at("search"):
                for spec in filter(None, (self.trained_reward, self.policy)):
                    if spec.method.name == self.sft.method.name:  # it goes on by the winner's method
                        check_stage(spec.stage, method)
                    else:
                        check_follow(method, spec.method, self.model.config())
                if self.merge and (self.policy is None or self.policy.method.name == self.sft.method.name):
                    check_merge(method, config=self.model.config())
        return self

    @model_validator(mode="after")
    def _measurable(self) -> "Plan":
        """Refuse a gate that nothing in the plan would measure."""
        missing = {
            **({} if self.reward else dict.fromkeys(_REWARDS, "a reward model, and the plan has no reward")),
            **({} if self.data.preferences else dict.fromkeys(_PAIRS, "pairs, and the plan has no data.preferences")),
            **({} if self.data.texts else {"text_nll": "ordinary text, and the plan has no data.texts"}),
        }
        if (self.model.config() or {}).get("is_encoder_decoder"):
            missing["text_nll"] = "the likelihood of plain text, which an encoder-decoder model does not give"
        for gate in self.gates:
            for _, raw in metric(gate.metric, gate.against).wants(gate.comparator):
                if raw in missing:
                    raise ValueError(f"gate {gate.metric}: it needs {missing[raw]}; leave the gate out, or use another metric")
        check_suites(self.evaluation.suites, self.gates)
        if self.search and self.search.needs_preferences and not self.data.preferences:
            raise ValueError(f"search: metric {self.search.metric} needs {missing['chosen_logp']}; use answer_perplexity")
        return self

    @model_validator(mode="after")
    def _has_no_majority(self) -> "Plan":
        """Refuse a comparison that only labels allow."""
        for gate in self.gates:
            if gate.against == "majority":
                raise ValueError(f"gate {gate.metric}: answers have no majority label; use against: parent, base or champion")
        return self

    @property
    def trained_reward(self) -> RewardSpec | None:
        """How the reward model is trained, if it is trained here."""
        return self.reward if isinstance(self.reward, RewardSpec) else None

    @property
    def merges(self) -> bool:
        """Whether the policy is merged before it is measured: there is an adapter, and it can be."""
        return merges((self.policy or self.sft).method, self.model.config())

    def subjects(self) -> list[str]:
        """Whose answers and scores the gates need: the candidate, its parent (what it was trained from), and what gates name."""
        compared = {gate.comparator for gate in self.gates if gate.comparator}
        return [who for who in SUBJECTS if who in compared | {"candidate", "parent"}]

    @property
    def challenges(self) -> bool:
        """Whether a gate compares the candidate with the champion."""
        return any(gate.meets_champion for gate in self.gates)

    def metrics(self) -> MetricsSpec:
        """The metric modules that the report and the gates need."""
        gated = (gate.metric for gate in self.gates if gate.metric in modules.names())
        return MetricsSpec(metrics=(*self.evaluation.metrics, *gated))

    def judge(self, champion: str | None = None) -> VerdictSpec:
        """What the verdict is decided by; `champion`: key of the release that is met, if one is."""
        return judged_by(self.gates, self.seed, champion)

    def card(self) -> ReleaseSpec:
        """What the release says of itself."""
        return ReleaseSpec(name=self.name, **self.release.model_dump(exclude={"channel", "review_days"}))

    def workshop(self) -> Workshop:
        """The store and the model cache this plan builds with."""
        return Workshop(Store(self.store.root, self.store.remote), models_folder(), self.execution)
