# pyright: basic
"""Models with a task head: which weights are new, and a body that is really the base's.

Transformers fills what a checkpoint lacks with random numbers and says so in a log.  Two such gaps are dangerous: for question
answering some decoders keep their body under another name than language models do, so that all of it would be random; and an
encoder's pooler is often not in the checkpoint, so an adapter that does not hold it is another model each time it is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModelForQuestionAnswering
from peft.utils.other import ModulesToSaveWrapper
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerBase,
)

from tasks.core.errors import SpecError
from tasks.policy import HeadKind
from tasks.training.pooling import pool_by_mask

_CLASSES: dict[HeadKind, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}
_RENAMED = "alignflow_renamed"
"""attribute of a model: pattern -> name, by which the checkpoint's names became those of the model"""
_FRESH = "alignflow_fresh"
"""attribute of a model: names of its modules whose weights were not in the checkpoint"""


def headed(source: Path, kind: HeadKind, labels: Sequence[str], **how: Any) -> Any:  # noqa: ANN401
    """The model of `source` under a head of `kind`, whose numbers for `labels` are their places.

    Raises SpecError where there is no such head for this model, or where more than a head and a pooler is missing.
    """
    named = {i: label for i, label in enumerate(labels)}
    if kind != "question_answering":
        how |= {"num_labels": len(named), "id2label": named, "label2id": {label: i for i, label in named.items()}}
    model, missing, more = _loaded(source, kind, how)
    if any(_in_body(model, name) for name in missing) and more:
        found = sorted({name.partition(".")[0] for name in more if not name.startswith("lm_head")})
        mapping = {rf"^{name}\.": f"{model.base_model_prefix}." for name in found if name != model.base_model_prefix}
        model, missing, _ = _loaded(source, kind, {**how, "key_mapping": mapping})
        setattr(model, _RENAMED, mapping)
        vars(model).pop("_weight_conversions", None)  # or it would be saved under the names that do not load
    if lost := [name for name in missing if _in_body(model, name)]:
        raise SpecError(
            f"task {kind}: {len(lost)} weights of {model.config.model_type}, such as {lost[0]}, are not in the base's files and "
            "would be random; use a base of another family"
        )
    setattr(model, _FRESH, sorted({_module(model, name) for name in missing}))
    return pool_by_mask(model) if kind == "sequence_classification" and hasattr(model, "score") else model


def fresh(model: Any) -> list[str]:  # noqa: ANN401
    """Names of the modules of `model` that are new, so that every method must train and keep them: heads, an encoder's pooler."""
    return list(getattr(model, _FRESH, ()))


def renamed(model: Any) -> dict[str, str]:  # noqa: ANN401
    """By which pattern the checkpoint's names became those of `model`."""
    return dict(getattr(model, _RENAMED, {}))


def seeing_segments(model: Any) -> Any:  # noqa: ANN401  PEFT's models
    """`model`, whose forward pass hands `token_type_ids` on: PEFT 0.21 leaves them out in question answering, merged or not.

    Under a soft prompt they stay out, in training and in use.
    """
    if isinstance(model, PeftModelForQuestionAnswering) and not model.active_peft_config.is_prompt_learning:
        model.forward = lambda **given: model.base_model(**given)  # pyright: ignore[reportAttributeAccessIssue]
    return model


def unwrapped(model: Any) -> Any:  # noqa: ANN401  transformers' models
    """A merged `model` with its trained head in place: PEFT's layer-norm tuning leaves it wrapped, under names nobody loads."""
    wrappers = [(name, module) for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    for name, module in wrappers:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.modules_to_save["default"])
    return model


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token for padding that no text ends with, the tokenizer's own where it can be."""
    ends = tokenizer("text")["input_ids"][-1:]
    candidates: list[Any] = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0, 1]
    return next(token for token in candidates if token is not None and token not in ends)


def _loaded(source: Path, kind: HeadKind, how: dict[str, Any]) -> tuple[Any, list[str], list[str]]:
    try:
        model, info = _CLASSES[kind].from_pretrained(source, use_safetensors=True, output_loading_info=True, **how)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise SpecError(f"task {kind}: transformers has no such head for this base; use a base of another family") from error
    return model, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


def _in_body(model: Any, name: str) -> bool:  # noqa: ANN401
    return name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name


def _module(model: Any, name: str) -> str:  # noqa: ANN401
    """The module that a new weight belongs to: the head as a whole, or `bert.pooler.dense`."""
    first = name.partition(".")[0]
    return name.rpartition(".")[0] if first == model.base_model_prefix else first
