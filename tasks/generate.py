"""The answers stage: what a policy says to each prompt.  Spec and Stage object; the work runs in a child process."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from tasks.base import on_base
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.spec import Spec


class AnswersSpec(Spec):
    """Let a policy answer prompts."""

    max_new_tokens: PositiveInt = 128
    """an answer is cut here, stop token included"""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token each time"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """draw from the likeliest tokens that together have this probability"""
    seed: NonNegativeInt = 0
    """of the draws; each answer has draws of its own, whatever else is answered"""
    limit: PositiveInt | None = None
    """answer the first so many prompts by id; null: all"""
    skip: NonNegativeInt = 0
    """prompts by id that are passed over before the first; after the last one comes the first again"""
    samples: PositiveInt = 1
    """answers to each prompt"""

    @model_validator(mode="after")
    def _differ(self) -> "AnswersSpec":
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"{self.samples} samples at temperature 0 would be one answer {self.samples} times; raise temperature"
            )
        if self.skip and self.limit is None:
            raise ValueError(f"skip {self.skip} without limit passes over nothing, for all prompts are answered; give a limit")
        return self


def answer(spec: AnswersSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `answers.parquet`: what the policy says to each prompt.

    Inputs: policy, prompts (or preferences, whose training pairs lend their prompts).
    """
    return alone("generate", spec, inputs, out, run)


def alone(job: str, spec: Spec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Run `job` in one child process, whatever number training uses: the rows are not split over processes."""
    return on_base(job, spec, inputs, out, replace(run, execution=run.execution.model_copy(update={"processes": 1})))


ANSWERS = Stage("answers", 1, "answers", answer, heavy=True)
"""inputs: policy, prompts (prompts or preferences)"""
