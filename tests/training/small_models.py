"""Tiny random models of many families, and what the tests of our own methods do with them."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tasks.training.methods.known import make_all_known

make_all_known()
WORDS, HIDDEN, INNER, LAYERS = 64, 16, 24, 2
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, **_TOKENS,
}  # fmt: skip
_KV: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": INNER}
_FAMILIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "llama": ("CAUSAL_LM", lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, **_KV))),
    "gpt2": ("CAUSAL_LM", lambda: GPT2LMHeadModel(GPT2Config(**_SHAPE))),
    "opt": ("CAUSAL_LM", lambda: OPTForCausalLM(OPTConfig(**_SHAPE, ffn_dim=INNER, word_embed_proj_dim=HIDDEN))),
    "t5": (
        "SEQ_2_SEQ_LM",
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=WORDS, d_model=HIDDEN, d_kv=4, num_layers=LAYERS, num_heads=4, d_ff=INNER, decoder_start_token_id=0
            )
        ),
    ),
    "bert": ("FEATURE_EXTRACTION", lambda: BertForMaskedLM(BertConfig(**_SHAPE, intermediate_size=INNER))),
    "bert-classifier": ("SEQ_CLS", lambda: BertForSequenceClassification(BertConfig(**_SHAPE, intermediate_size=INNER))),
    "mixtral": ("CAUSAL_LM", lambda: MixtralForCausalLM(MixtralConfig(**_SHAPE, **_KV, num_local_experts=4))),
    "llama-reward": ("SEQ_CLS", lambda: LlamaForSequenceClassification(LlamaConfig(**_SHAPE, **_KV, num_labels=1))),
    "mistral": ("CAUSAL_LM", lambda: MistralForCausalLM(MistralConfig(**_SHAPE, **_KV))),
    "qwen3": ("CAUSAL_LM", lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE, **_KV, head_dim=4))),
    "phi3": ("CAUSAL_LM", lambda: Phi3ForCausalLM(Phi3Config(**_SHAPE, **_KV))),
    "gpt-oss": (
        "CAUSAL_LM",
        lambda: GptOssForCausalLM(GptOssConfig(**_SHAPE, **_KV, head_dim=4, num_local_experts=4, num_experts_per_tok=2)),
    ),
}


def build(kind: str, seed: int = 0) -> Any:
    """A model of family `kind` in training mode, without dropout; every parameter is random, biases and norms too."""
    torch.manual_seed(seed)
    model = _FAMILIES[kind][1]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.add_(0.2 * torch.randn_like(parameter)) if "embed" not in name else None
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def wrap(model: Any, config: Any, kind: str, seed: int = 1) -> Any:
    """`model` with adapter `default` of `config`."""
    config.task_type = _FAMILIES[kind][0]
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def inputs(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 23).reshape(2, 10)
    return {"input_ids": ids, **({"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {})}


def logits(model: Any) -> torch.Tensor:
    """(2, ...) in evaluation mode."""
    was = model.training
    with torch.no_grad():
        out = model.eval()(**inputs(model))
    model.train(was)
    return out.logits if hasattr(out, "logits") else out.start_logits


def steps(model: Any, count: int = 3, rate: float = 1e-2) -> Any:
    """`model` after some steps of AdamW towards arbitrary outputs."""
    torch.manual_seed(2)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    wanted = torch.randn_like(logits(model).float())
    for _ in range(count):
        out = model(**inputs(model))
        loss = ((out.logits if hasattr(out, "logits") else out.start_logits).float() - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: value.detach().clone() for name, value in named}


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    after = tensors(model)
    assert after.keys() == before.keys()
    return {name for name in after if not torch.equal(after[name], before[name])}


def trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def save(model: Any, folder: Any) -> Any:
    """Save as the project does: no look at the hub."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder
