# pyright: basic
"""Compose adapters by PEFT's `add_weighted_adapter`, and certify how far the outcome is from the sum of the separate updates.

Distances are over all positions of a few texts, as in a merge.  The sum is taken on the live model: every part active at once,
each update scaled by its weight.
"""

import json
import math
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoTokenizer, set_seed

from tasks.compose import PART, ComposeSpec, check_parts
from tasks.core.contract import Inputs, Metrics, Run
from tasks.core.errors import AlignError, SpecError
from tasks.core.files import write_json
from tasks.core.lineage import opened
from tasks.core.spec import Json
from tasks.core.store import MANIFEST
from tasks.methods import Lora, Qlora
from tasks.policy import ADAPTERS, Link, PolicyRecord, read_record
from tasks.training.adapters import METHOD, Start, write_payload
from tasks.training.data import Encoder
from tasks.training.merge import Distance, logits_of, rounded
from tasks.training.models import PEFT_TASKS, WEIGHTS, Loaded, bare, checked_source, peft_task_of, torch_device, with_adapter
from tasks.training.vision import encoder_for

COMPOSED = "compose.json"
PROBES = (
    "What is the capital of France, and which river runs through it?",
    "Rewrite politely: send me the file now.",
    "List three animals that can fly, as a JSON array.",
    "A train leaves at 9:40 and takes 95 minutes. When does it arrive?",
    "Summarise in one sentence: the meeting moved to Tuesday because two people were ill.",
    "用一句话说明为什么天空是蓝色的。",
)
"""what the outcome is compared on"""


def run(spec: ComposeSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write one policy from `inputs["part_0"]`, ...; its last adapter is the weighted combination of theirs."""
    policies = [inputs[f"{PART}{number}"] for number in range(len(inputs))]
    if len(policies) != len(spec.weights):
        raise SpecError(f"compose: {len(spec.weights)} weights for {len(policies)} policies; give each one a weight")
    record = check_parts({f"part {number + 1}": policy for number, policy in enumerate(policies)}, spec.how)
    loaded = _below(policies[0], record, run)
    names = [f"{PART}{number}" for number in range(len(policies))]
    model = _with_parts(loaded.model, policies, names)
    set_seed(spec.seed)
    model.base_model.add_weighted_adapter(
        names, list(spec.weights), "default", combination_type=spec.how, svd_rank=spec.rank, density=spec.density,
        majority_sign_method=spec.sign,
    )  # fmt: skip
    certificate = _certificate(spec, model, names, encoder_for(loaded, model=loaded.model))
    run.log(f"composed {len(names)} adapters by {spec.how}: largest logit distance {certificate['max_logit_distance']}")
    made = model.peft_config["default"]
    method = (Qlora if record.quantization else Lora)(rank=made.r, alpha=float(made.lora_alpha), targets=_targets(policies, made))
    link = Link(stage="compose", method=method.name, adapter=f"{len(record.adapters) - 1}-compose")
    chain = (*(link for link in record.chain if link.adapter != record.adapters[-1]), link)
    begin = Start(loaded.replace(model), policies[0], record.model_copy(update={"chain": chain}), "compose", method)
    write_payload(begin, out, model)
    parts: list[Json] = [_part(policy, weight) for policy, weight in zip(policies, spec.weights, strict=True)]
    write_json(out / COMPOSED, {"how": spec.how, "rank": made.r, "parts": parts, "certificate": certificate})
    return {"method": method.name, "how": spec.how, "parts": len(parts), "rank": made.r, **certificate}


def _below(policy: Path, record: PolicyRecord, run: Run) -> Loaded:
    """What the parts lie on: the model with all adapters but the last merged in memory, as `models.load` does."""
    source, device = checked_source(policy, record, run), torch_device(run)
    model = bare(source, record, "policy", device)
    for name in record.adapters[:-1]:
        if record.quantization:
            raise SpecError("compose: there are adapters below on a 4-bit base, which cannot be merged there; merge them first")
        model = with_adapter(model, policy / ADAPTERS / name, None).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    model = model if record.quantization else model.to(device)
    return Loaded(model.requires_grad_(False).eval(), tokenizer, record, source, device)


def _with_parts(model: Any, policies: list[Path], names: list[str]) -> Any:  # noqa: ANN401
    wrapped: Any = None
    for policy, name in zip(policies, names, strict=True):
        folder = policy / ADAPTERS / read_record(policy).adapters[-1]
        config = _plain(PeftConfig.from_pretrained(str(folder)), model)
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
        set_peft_model_state_dict(wrapped, load_file(folder / WEIGHTS), adapter_name=name)
    return wrapped.requires_grad_(False).eval()


def _plain(config: PeftConfig, model: Any) -> LoraConfig:  # noqa: ANN401
    """The same adapter scaled by alpha / rank: PEFT keeps rsLoRA's rule for what it composes, but not rsLoRA's alpha."""
    assert isinstance(config, LoraConfig)
    if config.use_rslora:
        config.lora_alpha = config.lora_alpha * math.sqrt(config.r)  # pyright: ignore[reportAttributeAccessIssue]
        config.use_rslora = False
    config.task_type = peft_task_of(model, PEFT_TASKS["policy"])  # pyright: ignore[reportAttributeAccessIssue]
    config.base_model_name_or_path = None
    config.inference_mode = True
    config.lora_dropout = 0.0
    return config


def _certificate(spec: ComposeSpec, model: Any, names: list[str], encoder: Encoder) -> dict[str, Json]:  # noqa: ANN401
    """How far the composed adapter is from the sum.  Raises AlignError where `cat`, which is that sum, is not."""
    texts = [encoder.prompt([{"role": "user", "content": text}]) for text in PROBES]
    with model.disable_adapter():
        without = [logits_of(model, ids, encoder) for ids in texts]
    model.base_model.set_adapter(names)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = dict(zip(names, spec.weights, strict=True))
    for layer in layers:
        layer.scaling = {name: scale * weights.get(name, 1.0) for name, scale in layer.scaling.items()}
    wanted = [logits_of(model, ids, encoder) for ids in texts]
    model.base_model.set_adapter("default")
    distance, effect = Distance(), 0.0
    for ids, before, want in zip(texts, without, wanted, strict=True):
        distance.add(want, logits_of(model, ids, encoder))
        effect = max(effect, float((want - before).abs().max()))
    if spec.how == "cat" and not distance.largest <= spec.tolerance:
        raise AlignError(
            f"compose cat: a logit is {distance.largest:.3g} away from the sum of the separate updates, more than the tolerance "
            f"{spec.tolerance:g}; raise the tolerance, or use fewer parts or smaller weights"
        )
    return {
        "max_logit_distance": rounded(distance.largest),
        "mean_logit_distance": rounded(distance.total / (distance.tokens * distance.words)),
        "kl_nats_per_token": rounded(distance.kl / distance.tokens),
        "top1_agreement": round(distance.agree / distance.tokens, 6),
        "sum_effect": rounded(effect),
        "tokens": distance.tokens,
    }


def _targets(policies: list[Path], made: LoraConfig) -> Any:  # noqa: ANN401
    """What the parts' methods named, if they agree; else the names of the modules."""
    folders = [policy / ADAPTERS / read_record(policy).adapters[-1] for policy in policies]
    named = {_named(folder / METHOD) for folder in folders}
    return "all-linear" if named == {"all-linear"} else tuple(sorted(made.target_modules or ()))


def _named(path: Path) -> str:
    targets = json.loads(path.read_text(encoding="utf-8")).get("targets") if path.is_file() else None
    return str(targets)


def _part(policy: Path, weight: float) -> dict[str, Json]:
    """What went in: weight, chain, and the artifact's key and digest."""
    chain: list[Json] = [f"{link.stage} {link.method}" for link in read_record(policy).chain]
    found = opened(policy) if (policy / MANIFEST).is_file() else None
    return {
        "weight": weight,
        "chain": chain,
        "key": found.key if found else None,
        "digest": found.digest if found else None,
    }
