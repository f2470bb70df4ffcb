"""What a plan would do, without doing it: each stage built or missing, and for a miss which field changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tasks.core.build import Source, Workshop
from tasks.core.contract import Identity, Stage
from tasks.core.spec import Spec, differences
from tasks.core.store import Artifact


@dataclass(frozen=True)
class Step:
    """One stage of a plan as the store sees it now."""

    name: str
    stage: Stage
    spec: Spec
    inputs: Mapping[str, "Step | Path"]
    identity: Identity | None
    """None while an input is missing: its digest, and so this key, is not known yet"""
    artifact: Artifact | None
    why: tuple[str, ...]
    """for a missing artifact, what is different from the nearest one that is there"""
    seconds: float | None
    """what the nearest artifact took to build"""

    @property
    def state(self) -> str:
        """built, missing, or waits (for a missing input)."""
        return "built" if self.artifact else "missing" if self.identity else "waits"


@dataclass
class Explain:
    """Builds nothing: looks every stage up."""

    workshop: Workshop
    steps: list[Step] = field(default_factory=list[Step])

    def __call__(self, stage: Stage, spec: Spec, inputs: Mapping[str, Any], *, name: str | None = None) -> Step:
        """Look `stage` up; `inputs` are steps of this builder or paths of raw files."""
        missing = [step.name for step in inputs.values() if isinstance(step, Step) and step.artifact is None]
        identity = artifact = None
        if not missing:
            known: dict[str, Source] = {key: source(value) for key, value in inputs.items()}
            identity = self.workshop.identity(stage, spec, known)
            artifact = self.workshop.store.find(identity.kind, identity.key)
        nearest, changes = (artifact, []) if artifact else self._nearest(stage, spec, identity)
        changes = [] if missing and nearest is None else changes
        why = () if artifact else (f"waits for {', '.join(missing)}", *changes) if missing else tuple(changes)
        seconds = float(str(nearest.provenance["seconds"])) if nearest else None
        step = Step(name or stage.name, stage, spec, dict(inputs), identity, artifact, why, seconds)
        self.steps.append(step)
        return step

    def _nearest(self, stage: Stage, spec: Spec, identity: Identity | None) -> tuple[Artifact | None, list[str]]:
        """The artifact of this stage with the fewest different fields, the youngest of equals, and those fields."""
        best: tuple[Artifact | None, list[str]] = (None, ["never built here"])
        fewest = float("inf")
        for artifact in self._all:
            if artifact.stage != stage.name:
                continue
            wanted = identity or Identity.of(stage, spec, {})
            known = {key: value for key, value in artifact.identity.items() if identity or key != "inputs"}
            asked = {key: value for key, value in wanted.fields.items() if identity or key != "inputs"}
            changes = differences(known, asked)
            if len(changes) <= fewest:
                fewest, best = len(changes), (artifact, changes)
        return best if best[1] else (best[0], [] if identity is None else ["its artifact was removed or damaged"])

    @cached_property
    def _all(self) -> list[Artifact]:
        return list(self.workshop.store.all())


def source(value: Step | Path) -> Source:
    """What a later stage reads of an earlier step."""
    if isinstance(value, Path):
        return value
    assert value.artifact is not None
    return value.artifact
