"""What a plan says of suites: which, where their prompts lie, and what is measured beside what they name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from evals import modules, suite
from evals.gates import Gate
from evals.suite import Settings
from tasks.core.errors import SpecError
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


def check_suites(suites: Sequence[SuitePlan], gates: Iterable[Gate]) -> None:
    """Raise ValueError for two suites of one name, and for a gate on what no suite of the plan measures."""
    named = {entry.name: entry for entry in suites}
    if len(named) < len(suites):
        raise ValueError("evaluation.suites names one suite twice; leave one out")
    for gate in gates:
        if (inside := suite.split(gate.metric)) is None:
            continue
        if (entry := named.get(inside[0])) is None:
            raise ValueError(
                f"gate {gate.metric}: evaluation.suites has no {inside[0]}; add it with the file of its prompts, or leave it out"
            )
        if inside[1] in (suite.JUDGED, suite.AGREED) and entry.judge is None:
            raise ValueError(f"gate {gate.metric}: suite {inside[0]} has no judge; add one, or leave it out")
