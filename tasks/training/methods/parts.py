# pyright: basic
"""Methods that train weights of the model in place, all or a part, and leave a whole model."""

from collections.abc import Callable
from typing import Any

from tasks.core.errors import SpecError
from tasks.training.methods.builder import Builder
from tasks.training.models import Loaded

_HEADS = ("score", "classifier", "qa_outputs")
"""heads of tasks: fresh, so always trained"""


def _train(name: str, wanted: Callable[[str], bool]) -> Builder:
    """A builder that trains the parameters for whose name `wanted` holds, and a task's head."""

    def wrap(loaded: Loaded, method: Any, task: str) -> Any:  # noqa: ANN401
        chosen = [(key, p) for key, p in loaded.model.named_parameters() if wanted(key)]
        if not chosen:
            raise SpecError(f"method {name}: {loaded.model.config.model_type} is no mixture of experts; use full or lora")
        loaded.model.requires_grad_(False)
        for _, parameter in chosen:
            parameter.requires_grad_(True)
        for key, parameter in loaded.model.named_parameters():
            if task != "policy" and key.split(".")[0] in _HEADS:
                parameter.requires_grad_(True)
        return loaded.model

    return Builder(wrap)


FULL = _train("full", lambda name: True)
EXPERTS = _train("moe_experts", lambda name: ".experts." in name)
ROUTER = _train("moe_router", lambda name: bool({"gate", "router"} & set(name.split(".")[:-1])))
