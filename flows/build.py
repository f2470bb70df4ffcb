"""How a pipeline asks for a stage; who runs it decides what that does: Prefect, `align plan`, a benchmark."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from tasks.core.contract import Stage
from tasks.core.spec import Spec


class Build(Protocol):
    """How a stage is asked for.  What it returns is passed on as an input of later stages."""

    def __call__(self, stage: Stage, spec: Spec, inputs: Mapping[str, Any], *, name: str | None = None) -> Any:  # noqa: ANN401
        """Ask for `stage` under `spec`; `name` tells two uses of one stage apart."""
        ...


class Champion(NamedTuple):
    """What a candidate is measured beside."""

    release: str
    """its key"""
    policy: Any
    """as an input for the builder"""


Meet = Callable[[Any], Champion | None]
"""what the builder made of the candidate, or of the base -> its champion; None where there is none yet; see `flows.champion`"""


def nobody(_: Any) -> None:  # noqa: ANN401
    """Meet no champion: for builders that release nothing."""
