"""A reward model that was trained elsewhere: a transformers classifier with one label, its tokenizer and its chat template.

It is brought as a base is (`tasks.base`): safetensors alone, never remote code.  It reads answers as text, in its own template
and tokens, and is scored at the last token of the template's tail, as those that are trained here are.
"""

import json
from pathlib import Path
from typing import Any

from tasks import smollm
from tasks.base import BaseSpec, base_request, bring, facts, tensors
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import SpecError
from tasks.policy import TEMPLATE, PolicyRecord, find_template, template_digest, tokenizer_digest, write_record

_WHAT = "reward model"
_HEAD = "score.weight"
"""as every decoder of transformers calls its head of scores"""


class RewardModelSpec(BaseSpec):
    """A reward model that was trained elsewhere."""

    chat: bool = False
    """it writes no text; a chat template it must have all the same"""


def reward_request(model: str, revision: str | None, root: Path) -> tuple[RewardModelSpec, dict[str, Path]]:
    """Spec and inputs of REWARD_MODEL for `model`, a folder seen from `root`, or a hub id; else SpecError."""
    if model == smollm.NAME:
        raise SpecError(f"{_WHAT} {model}: it writes text and gives no score; name a classifier with one label")
    spec, files = base_request(model, revision, root)
    return RewardModelSpec(model=spec.model, revision=spec.revision), files


def bring_reward_model(spec: RewardModelSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Bring the model into the model cache and write its `policy.json`.  Inputs: source (a folder), for a local model alone."""
    base, folder = bring(spec, inputs, run, what=_WHAT)
    _check(folder, f"{_WHAT} {spec.model}")
    tokenizer, template = tokenizer_digest(folder), template_digest(folder)
    write_record(out, PolicyRecord(task="reward", base=base, tokenizer=tokenizer, template=template))
    return facts(folder)


def _check(folder: Path, where: str) -> None:
    """Refuse a model that does not give one score to a conversation."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kinds: list[str] = config.get("architectures") or ["model of no known kind"]
    if not kinds[0].endswith("ForSequenceClassification"):
        raise SpecError(f"{where}: a {kinds[0]} gives no score; give a sequence classifier with one label")
    labels = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    if labels != 1:
        raise SpecError(f"{where}: it has {labels} labels, and a reward model has one, the score; train it with num_labels=1")
    head = tensors(folder).get(_HEAD)
    if head is None:
        raise SpecError(
            f"{where}: its weights hold no {_HEAD}, the head that scores the last token a decoder reads; was it saved with its "
            "head, and is it a decoder?"
        )
    if head["shape"][0] != 1:
        raise SpecError(
            f"{where}: its head gives {head['shape'][0]} numbers, and a reward model gives one; train it with num_labels=1"
        )
    if find_template(folder) is None:
        raise SpecError(
            f"{where}: its tokenizer has no chat template, and it reads conversations; add the one that it was trained with as "
            f"{TEMPLATE} to a local copy"
        )


REWARD_MODEL = Stage("reward-model", 1, "reward_model", bring_reward_model)
"""inputs: none; source (a transformers folder) for a local model"""
