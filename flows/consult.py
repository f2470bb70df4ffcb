"""What stands about a release before it is built: the builder that hands the stage `release` a person's approval.

Whoever looks a plan up or runs it wraps its builder, so the pipelines know nothing of people.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.explain import Explain, Step
from tasks.core.contract import Stage
from tasks.core.errors import GateError
from tasks.core.spec import Spec
from tasks.release import DECISION, RELEASE, ReleaseSpec, Ruling, ruling


class Undecided(GateError):
    """No gate forbids the release, and a person must allow it and has not."""

    def __init__(self, no: str, plan: str = "PLAN", more: str = "") -> None:
        """`no`: why it is not released; `plan`: what to write for the plan; `more`: what else the reader should know."""
        self.no, self.more = no, more
        decide = f'`align approve {plan} --why "..."` or `align reject {plan} --why "..."`'
        super().__init__(f"{no}; {more or 'a person decides'}: {decide} (`align gates {plan}` shows the evidence)")

    def at(self, path: Path, overrides: Sequence[str]) -> "Undecided":
        """The same, to be copied from a terminal."""
        return Undecided(self.no, shlex.join([str(path), *(word for one in overrides for word in ("--set", one))]), self.more)


@dataclass(frozen=True)
class Consulted:
    """Looks stages up, the release with the approval that stands."""

    explain: Explain

    def __call__(self, stage: Stage, spec: Spec, inputs: Mapping[str, Any], *, name: str | None = None) -> Any:  # noqa: ANN401
        """Look `stage` up."""
        if stage is not RELEASE:
            return self.explain(stage, spec, inputs, name=name)
        found = self._ruling(spec, inputs)
        if found and found.approval:
            inputs = {**inputs, DECISION: found.approval}
        step = self.explain(stage, spec, inputs, name=name)
        if found and found.open and not step.artifact:
            step = replace(step, identity=None, why=("waits for a person: `align approve` or `align reject`",))
            self.explain.steps[-1] = step
        return step

    def _ruling(self, spec: Spec, inputs: Mapping[str, Step]) -> Ruling | None:
        assert isinstance(spec, ReleaseSpec)
        verdict, policy = inputs["verdict"].artifact, inputs["policy"].artifact
        return ruling(self.explain.workshop.store, spec, verdict, policy) if verdict and policy else None
