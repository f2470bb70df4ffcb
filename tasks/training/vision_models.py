# pyright: basic
"""Vision-language models: loading one with its processor, which of its modules see, and which methods may train it.

One rule: nothing that sees is trained unless the method says so (`full`, or targets `all-linear+vision`).
"""

import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging

from tasks.core.errors import SpecError
from tasks.policy import sees
from tasks.training.pooling import pool_by_mask

_HEAD = "score.weight"
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def processor_of(source: Path) -> Any:  # noqa: ANN401  transformers' processors
    """The processor of the model in folder `source`, None for a model of text.  Raises SpecError if it cannot be loaded."""
    if not sees(source):
        return None
    try:
        return AutoProcessor.from_pretrained(source, **_LOCAL)
    except (ImportError, AttributeError, OSError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpecError(
            f"base: its image processor cannot be loaded ({reason:.160}); processors that also take video need the package "
            "torchvision, which is not installed here; use another base, such as a LLaVA or Idefics3, or install it"
        ) from error


def vision_model(source: Path, **extra: Any) -> Any:  # noqa: ANN401
    """The model of `source` with its vision part."""
    return AutoModelForImageTextToText.from_pretrained(source, use_safetensors=True, **_LOCAL, **extra)


def vision_scorer(source: Path, **extra: Any) -> Any:  # noqa: ANN401
    """The same with a scalar head, the one that the files of `source` hold or a fresh one, in place of the language model's."""
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a scorer's files hold its head, and no language model's
    model = vision_model(source, **extra)
    transformers_logging.set_verbosity(said)
    width = model.config.get_text_config().hidden_size
    model.score = torch.nn.Linear(width, 1, bias=False, dtype=model.dtype, device=model.device)
    torch.nn.init.normal_(model.score.weight, std=model.config.get_text_config().initializer_range)
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if _HEAD in file.keys():  # noqa: SIM118  not a mapping
                model.score.weight.data.copy_(file.get_tensor(_HEAD))
    model.set_output_embeddings(torch.nn.Identity())
    model.config.num_labels = 1
    return pool_by_mask(model)


def seeing(model: Any) -> list[str]:  # noqa: ANN401
    """Names of the modules that an image goes through before the language model: tower and projector.  Empty for a text model."""
    if getattr(model.config, "vision_config", None) is None:
        return []
    decoder = model.get_decoder()
    found: list[str] = []
    for name, module in model.named_children():
        inner = [(f"{name}.{child}", part) for child, part in module.named_children()]
        if any(part is decoder for _, part in inner):
            found += [child for child, part in inner if part is not decoder]
    if not found:
        raise SpecError(
            f"base: a {type(model).__name__} keeps its vision part where it is not known; use a LLaVA-like or Idefics3-like model"
        )
    return found


def untrained(model: Any, targets: object) -> str | None:  # noqa: ANN401
    """A pattern of the modules that adapters with these `targets` leave alone, None for a text model or if they leave none."""
    parts = seeing(model)
    if targets == "all-linear+vision" or not parts:
        return None
    names = [f".{name}" for name, _ in model.named_modules() if name.startswith(tuple(f"{part}." for part in parts))]
    if not isinstance(targets, str) and not any(name.endswith(f".{target}") for name in names for target in cast(Any, targets)):
        return None  # PEFT warns of a pattern that nothing needs
    return rf"({'|'.join(re.escape(part) for part in parts)})\..*"
