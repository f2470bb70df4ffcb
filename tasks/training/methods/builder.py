# pyright: basic
"""What a method must be able to do with a loaded model: a `Builder`, one per method in `table.BUILDERS`."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError

from tasks.core.errors import SpecError
from tasks.training.head_models import fresh, seeing_segments
from tasks.training.models import PEFT_TASKS, Loaded, peft_task_of


def write_peft(model: PeftModel, folder: Path) -> None:
    """Write adapter `default` of `model` to `folder` as PEFT does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for the base on the hub to see whether the vocabulary was resized
        model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)


def adamw(model: Any, method: Any, args: Any) -> torch.optim.Optimizer | None:  # noqa: ANN401
    """None: the trainer's own AdamW over every weight that is trained."""
    return None


@dataclass(frozen=True)
class Builder:
    """A method at work."""

    wrap: Callable[[Loaded, Any, str], Any]
    """`(loaded, method, task) -> model` whose first forward pass is that of `loaded`, and in which exactly what the method trains
    requires a gradient.  For an adapter a PeftModel whose adapter is `default`"""
    write: Callable[[Any, Path], None] = write_peft
    """`(model, folder)`: write an adapter as it rests: `models.load` reads that form, and so does PEFT without this project"""
    optimizer: Callable[[Any, Any, Any], torch.optim.Optimizer | None] = adamw
    """`(model, method, trainer's arguments) -> optimiser`, None for the trainer's own"""


def adapted(model: Any, config: Any) -> Any:  # noqa: ANN401  transformers and PEFT models
    """`model` under a fresh adapter of `config`, which also trains and keeps what is new in the model beside the usual heads."""
    if new := fresh(model):  # also the heads that PEFT knows: in question answering it learns of them too late
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *new})
    config.task_type = peft_task_of(model, config.task_type)
    try:
        return seeing_segments(get_peft_model(model, config))
    except NoMatchingPeftModuleError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        )
        raise SpecError(
            f"targets {config.target_modules!r}: {model.config.model_type} has no such modules; its linear layers are called "
            f"{', '.join(linear)}"
        ) from error


def peft(config: Callable[..., Any]) -> Callable[[Loaded, Any, str], Any]:
    """A `wrap` from `(model, method, task_type) -> PeftConfig`."""

    def wrap(loaded: Loaded, method: Any, task: str) -> Any:  # noqa: ANN401
        return adapted(loaded.model, config(loaded.model, method, PEFT_TASKS[task]))

    return wrap
