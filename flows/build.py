"""How a pipeline asks for a stage; who runs it decides what that does: Prefect, `align plan`, a benchmark."""

from collections.abc import Mapping
from typing import Any, Protocol

from tasks.core.contract import Stage
from tasks.core.spec import Spec


class Build(Protocol):
    """How a stage is asked for.  What it returns is passed on as an input of later stages."""

    def __call__(self, stage: Stage, spec: Spec, inputs: Mapping[str, Any], *, name: str | None = None) -> Any:  # noqa: ANN401
        """Ask for `stage` under `spec`; `name` tells two uses of one stage apart."""
        ...
