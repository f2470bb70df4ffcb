# pyright: basic
"""Where a training stage starts, and what it writes: adapters continued or fresh on the policy, or the whole model.

Either way the first forward pass gives exactly the parent policy.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import set_seed

from tasks.chain import check_seq2seq, check_sight, follow, shape
from tasks.core.contract import Run
from tasks.core.errors import SpecError
from tasks.core.files import write_json
from tasks.core.spec import Spec, canonical, to_json
from tasks.heads import Head
from tasks.methods import METHODS, AnyMethod, check_vision
from tasks.policy import (
    ADAPTERS,
    MODEL,
    TEMPLATE,
    TOKENIZER_FILES,
    Link,
    PolicyRecord,
    Task,
    is_seq2seq,
    read_record,
    sees,
    write_record,
)
from tasks.train import TrainSpec
from tasks.training.methods.table import BUILDERS
from tasks.training.models import Loaded, checked_source, load

METHOD = "method.json"
"""beside an adapter's weights: the spec of the method that made it"""


@dataclass(frozen=True)
class Start:
    """A model ready to train and the record of what will come out."""

    loaded: Loaded
    parent: Path
    record: PolicyRecord
    how: str
    """continue, fresh or full: how it came from the parent"""
    method: AnyMethod

    @property
    def model(self) -> Any:  # noqa: ANN401  transformers and PEFT models
        """What the trainer trains."""
        return self.loaded.model


def start(policy: Path, spec: TrainSpec, run: Run, head: Head | None = None) -> Start:
    """Load `policy`, under a fresh `head` if one is given, and make it trainable by the method of `spec`.

    Raises SpecError where that would not start exactly there.
    """
    parent = read_record(policy)
    row, builder = METHODS[spec.method.name], BUILDERS[spec.method.name]
    task: Task = head.kind if head else "reward" if spec.stage == "reward" else "policy"
    if head and parent.adapters:
        raise SpecError(f"task {task}: the policy below it has adapters of its own; merge it first")
    last = policy / ADAPTERS / parent.adapters[-1] if parent.adapters else None
    same = last is not None and _same_shape(last, spec.method)
    how = follow(parent.quantization is not None, parent.chain[-1].method if last else None, spec.method, same=same)
    source = checked_source(policy, parent, run)
    if is_seq2seq(source):
        check_seq2seq(spec.stage)
    if sees(source):
        check_sight(spec.stage)
    set_seed(spec.seed)
    if how == "continue":
        loaded = load(policy, run, task=task, trainable=True, seed=spec.seed)
        _set_dropout(loaded.model, getattr(spec.method, "dropout", 0.0))
        name = parent.adapters[-1]
    else:
        merged = bool(parent.adapters)
        how_held = {"merged": merged, "quantised": row.quantised, "trainable": not row.adapter}
        loaded = load(policy, run, task=task, seed=spec.seed, head=head, **how_held)
        check_vision(spec.method, sees=loaded.processor is not None)
        loaded = loaded.replace(builder.wrap(loaded, spec.method, task))
        name = f"{len(parent.adapters)}-{spec.stage}" if row.adapter else None
        how = how if row.adapter else "full"
    link = Link(stage=spec.stage, method=spec.method.name, adapter=name)
    update = {"task": task, "chain": (*parent.chain, link), "quantization": "nf4" if row.quantised else None}
    return Start(loaded, policy, parent.model_copy(update=update), how, spec.method)


def write_payload(begin: Start, out: Path, model: Any) -> None:  # noqa: ANN401  transformers and PEFT models
    """Write the trained `model` under `out` by the rules of docs/artifacts.md: no path, no time, nothing random."""
    write_record(out, begin.record)
    trained = begin.record.chain[-1].adapter
    if trained is None:
        write_model(out / MODEL, model, begin.loaded.source)
        return
    if (begin.parent / MODEL).is_dir():
        shutil.copytree(begin.parent / MODEL, out / MODEL, copy_function=shutil.copyfile)
    for name in begin.record.adapters[:-1]:
        shutil.copytree(begin.parent / ADAPTERS / name, out / ADAPTERS / name, copy_function=shutil.copyfile)
    write_adapter(out / ADAPTERS / trained, model, begin.record.base.name, begin.method)


def write_model(folder: Path, model: Any, tokenizer_from: Path) -> None:  # noqa: ANN401
    """Write a whole model with the tokenizer files of `tokenizer_from`, byte for byte."""
    model.save_pretrained(folder)
    for name in (*TOKENIZER_FILES, TEMPLATE):
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)


def write_adapter(folder: Path, model: PeftModel, base: str, method: AnyMethod) -> None:
    """Write the adapter `default` of `model`; its config names the base by name, and PEFT's model card is left out."""
    draft = folder.with_name(f".{folder.name}")
    BUILDERS[method.name].write(model, draft)
    (draft / "README.md").unlink(missing_ok=True)
    path = draft / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    for name in ("target_modules", "modules_to_save", "exclude_modules", "feedforward_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(set(config[name]))  # sets, written in the order of their hashes
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_json(draft / METHOD, to_json(method))
    draft.rename(folder)


def _set_dropout(model: Any, share: float) -> None:  # noqa: ANN401
    for name, module in model.named_modules():
        if name.endswith("lora_dropout"):
            module["default"] = torch.nn.Dropout(share) if share else torch.nn.Identity()


def trainable_share(model: Any) -> tuple[int, float]:  # noqa: ANN401
    """Number of trainable parameters, and their share of all."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = model.num_parameters() if hasattr(model, "num_parameters") else sum(p.numel() for p in model.parameters())
    return trainable, trainable / max(total, trainable)


def _same_shape(folder: Path, method: Spec) -> bool:
    """Whether the adapter in `folder` was made by a method of the same shape."""
    path = folder / METHOD
    return path.is_file() and shape(json.loads(path.read_text())) == shape(json.loads(canonical(method)))
