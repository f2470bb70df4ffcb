# pyright: basic
"""Several policies in memory over one copy of each base: each has modules of its own, and the weights are the same tensors.

Switching is picking another model: no adapter is turned on or off, so none can be left in the wrong state, and adapters of any
type live beside each other.  One rule: nothing here writes into a weight.
"""

import copy
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoTokenizer

from tasks.core.contract import Run
from tasks.core.errors import DataError
from tasks.core.files import DigestCache
from tasks.core.spec import canonical
from tasks.policy import ADAPTERS, MODEL, PolicyRecord, read_record
from tasks.training.data import Encoder
from tasks.training.models import PEFT_TASKS, Loaded, bare, checked_source, load, torch_device, with_adapter
from tasks.training.vision import encoder_for


@dataclass(frozen=True)
class Held:
    """A policy ready to answer."""

    loaded: Loaded
    encoder: Encoder
    shares: bool
    """whether the weights below its adapters were in memory before"""
    seconds: float
    """what it took to load"""
    policy: Path | None = None
    """folder it came from; None for a bare model that was not asked for by a name"""


@dataclass
class Shelf:
    """Policies by name, and what they stand on."""

    run: Run
    held: dict[str, Held] = field(default_factory=dict[str, Held])
    _bodies: dict[str, Loaded] = field(default_factory=dict[str, Loaded])

    def add(self, name: str, policy: Path) -> Held:
        """Load the policy in folder `policy` as `name`, over weights that are here if they are the ones it was trained on.

        A second time is no work.  Raises DataError for a name that another policy has and for a reward model, and what
        `models.load` raises.
        """
        if name in self.held and self.held[name].policy == policy:
            return self.held[name]
        if name in self.held:
            raise DataError(f"{name}: a policy of this name is loaded already; give another name")
        record = read_record(policy)
        if record.task != "policy":
            what = "a reward model" if record.task == "reward" else f"a model for {record.task.replace('_', ' ')}"
            raise DataError(f"{name}: {what}, which gives no answers; name a policy")
        started, bodies = time.monotonic(), len(self._bodies)
        folders = [policy / ADAPTERS / folder for folder in record.adapters]
        if stacked(folders) and not record.quantization:
            body = self._body(policy, record)
            loaded = replace(body, model=_with_all(twin(body.model), folders).to(body.device), record=record)
        elif len(folders) < 2:
            body = self._body(policy, record)
            model = twin(body.model)
            model = with_adapter(model, folders[0], PEFT_TASKS["policy"]) if folders else model
            loaded = replace(body, model=model, record=record)
            loaded.model.to(body.device) if not record.quantization else None
        else:  # what lies below the last adapter is merged into weights that are then nobody else's
            self.run.log(f"{name}: {' on '.join(reversed(record.adapters))} cannot be added up, so it gets weights of its own")
            loaded, bodies = load(policy, self.run, task="policy"), -1
        loaded.model.requires_grad_(False).eval()
        encoder = encoder_for(loaded, model=loaded.model)
        self.held[name] = Held(loaded, encoder, bodies == len(self._bodies), time.monotonic() - started, policy)
        return self.held[name]

    def plain(self) -> Held:
        """The bare model below the first policy that is not a whole model.  Raises DataError while there is none."""
        body = next((body for body in self._bodies.values() if body.source.name != MODEL), None)
        if body is None:
            raise DataError("the bare model is not in memory; load the base as a policy of its own")
        return Held(body, encoder_for(body, model=body.model), shares=True, seconds=0.0)

    def _body(self, policy: Path, record: PolicyRecord) -> Loaded:
        """The model below the adapters, loaded once; nothing wraps it, policies wrap twins."""
        own = policy / MODEL
        digest = DigestCache(self.run.models / ".digests.json").digest(own) if own.is_dir() else canonical(record.base.files)
        key = canonical([digest, record.quantization])
        source = checked_source(policy, record, self.run)  # also where the weights are known: the adapters may not be whole
        if key not in self._bodies:
            device = torch_device(self.run)
            model = bare(source, record, "policy", device)
            model = (model if record.quantization else model.to(device)).requires_grad_(False).eval()
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
            self._bodies[key] = Loaded(model, tokenizer, record, source, device)
        return self._bodies[key]


def twin(model: Any) -> Any:  # noqa: ANN401  transformers models
    """Another model over the same tensors: wrapping its modules leaves `model` alone."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def stacked(folders: list[Path]) -> bool:
    """Whether several adapters can work together on unmerged weights, exactly as if all but the last were merged.

    Low-rank updates add up.  DoRA scales the weight it was trained on, so it may only be the lowest.
    """
    configs = [PeftConfig.from_pretrained(str(folder)) for folder in folders]
    low_rank = all(str(config.peft_type).rpartition(".")[2] == "LORA" for config in configs)
    return len(folders) > 1 and low_rank and not any(getattr(config, "use_dora", False) for config in configs[1:])


def _with_all(model: Any, folders: list[Path]) -> Any:  # noqa: ANN401
    model = with_adapter(model, folders[0], PEFT_TASKS["policy"])
    names = ["default", *(f"above{number}" for number in range(1, len(folders)))]
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    model.base_model.set_adapter(names)
    return model
