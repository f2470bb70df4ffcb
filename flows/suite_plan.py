"""What a plan says of suites and tasks of lm-eval: which, where their prompts lie, and what is measured beside what they name."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Discriminator, NonNegativeInt, PositiveInt, Tag, model_validator

from evals import harness, modules, suite
from evals.gates import Gate
from evals.suite import Settings
from tasks.core.errors import SpecError
from tasks.harness import INSTALL, HarnessSpec, HarnessTaskSpec, installed
from tasks.pairwise import PairJudge, PairwiseSpec
from tasks.suites import ChoicesSpec, QuestionsSpec, SuiteScoresSpec


class SuitePlan(BaseModel):
    """A suite to measure on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    name: str
    """a suite of evals/suites, by its file's name"""
    source: Path
    """the file that holds its prompts"""
    limit: PositiveInt | None = None
    """so many of its prompts, the same for every model; null: all"""
    metrics: tuple[str, ...] = ()
    """modules of evals/metrics beside those that the suite names; what gates name is measured anyway"""
    answers: Settings | None = None
    """how its prompts are answered; null: as the suite says"""
    judge: PairJudge | None = None
    """a language model that compares the candidate's answers with the others'; null: nobody does"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            about = suite.suite(self.name)
        except SpecError as error:
            raise ValueError(str(error)) from error
        for name in self.metrics:
            about.check(name)
            if name not in modules.names():
                raise ValueError(f"{name}: it is no module, so it cannot be added; leave it out")
        if about.answers is None and (self.answers or self.judge):
            raise ValueError(f"suite {self.name} has nothing to answer, so answers and judge mean nothing; leave them out")
        return self

    @property
    def suite(self) -> str:
        """What gates call it, before the metric."""
        return self.name

    @property
    def settings(self) -> Settings | None:
        """How its prompts are answered; None for choices, which are not."""
        return self.answers or suite.suite(self.name).answers

    def questions(self) -> QuestionsSpec:
        """What decides its prompts."""
        return QuestionsSpec(asked=suite.suite(self.name).asked(), limit=self.limit)

    def scores(self, gates: Sequence[Gate]) -> SuiteScoresSpec | ChoicesSpec:
        """What is measured, for the suite, the plan and its gates."""
        if (settings := self.settings) is None:
            return ChoicesSpec(suite=self.name)
        gated = [inside[1] for gate in gates if (inside := suite.split(gate.metric)) and inside[0] == self.name]
        known = set(modules.names())
        wanted = {name for name in (*suite.suite(self.name).metrics, *self.metrics, *gated) if name in known}
        return SuiteScoresSpec(suite=self.name, metrics=tuple(sorted(wanted)), answers=settings)

    def pairs(self) -> PairwiseSpec | None:
        """What the judge compares, if there is one."""
        if self.judge is None or (settings := self.settings) is None:
            return None
        return PairwiseSpec(suite=self.name, answers=settings, judge=self.judge)


class HarnessPlan(BaseModel):
    """A task of lm-eval to measure on, in place of a suite."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    lm_eval: str
    """instead of a suite: a task of lm-eval, by its name; gates name `lm_eval.<task>.<metric>`"""
    limit: PositiveInt | None = None
    """so many of its documents, the same for every model; null: all"""
    few_shot: NonNegativeInt | None = None
    """solved examples before each document; null: as the task says"""
    chat_template: bool = False
    """ask under the model's chat template, in place of plain text"""
    include: Path | None = None
    """folder of YAML files that the task is in, for one of your own; whatever changes in it is measured again"""

    @model_validator(mode="after")
    def _there(self) -> Self:
        if not installed():
            raise ValueError(f"{self.lm_eval} is a task of lm-eval, which is not installed; {INSTALL}")
        if not harness.plain(self.lm_eval):
            raise ValueError(f"lm_eval {self.lm_eval!r}: not the name of a task")
        return self

    @property
    def suite(self) -> str:
        """What gates call it, before the metric."""
        return harness.suite_of(self.lm_eval)

    def task(self) -> HarnessTaskSpec:
        """What decides the task and its documents."""
        return HarnessTaskSpec(task=self.lm_eval, harness=installed() or "")

    def files(self) -> dict[str, Path]:
        """The folder that holds it, if it is not lm-eval's own."""
        return {"tasks": self.include} if self.include else {}

    def scores(self) -> HarnessSpec:
        """How it is asked."""
        spec = self.task()
        return HarnessSpec(harness=spec.harness, limit=self.limit, few_shot=self.few_shot, chat_template=self.chat_template)


def _kind(given: object) -> str:
    """Which member of the union an entry is."""
    foreign = isinstance(given, HarnessPlan) or (isinstance(given, Mapping) and "lm_eval" in given)
    return "HarnessPlan" if foreign else "SuitePlan"


SuiteEntry = Annotated[Annotated[SuitePlan, Tag("SuitePlan")] | Annotated[HarnessPlan, Tag("HarnessPlan")], Discriminator(_kind)]


def check_suites(suites: Sequence[SuitePlan | HarnessPlan], gates: Iterable[Gate]) -> None:
    """Raise ValueError for two suites of one name, and for a gate on what no suite of the plan measures."""
    named = {entry.suite: entry for entry in suites}
    if len(named) < len(suites):
        raise ValueError("evaluation.suites names one suite twice; leave one out")
    for gate in gates:
        if (inside := suite.split(gate.metric)) is None:
            continue
        if inside[0] == harness.PREFIX:
            if (asked := gate.metric.rpartition(".")[0]) not in named:
                task = asked.partition(".")[2]
                raise ValueError(
                    f"gate {gate.metric}: evaluation.suites has no lm_eval: {task}; add it, or leave the gate out"
                    f"{modules.nearest(asked, list(named))}"
                )
            continue
        entry = next((entry for entry in suites if isinstance(entry, SuitePlan) and entry.name == inside[0]), None)
        if entry is None:
            raise ValueError(
                f"gate {gate.metric}: evaluation.suites has no {inside[0]}; add it with the file of its prompts, or leave it out"
            )
        if inside[1] in (suite.JUDGED, suite.AGREED) and entry.judge is None:
            raise ValueError(f"gate {gate.metric}: suite {inside[0]} has no judge; add one, or leave it out")
