# pyright: basic
"""Soft prompts: trained vectors before the input (prompt tuning, P-tuning) or before each layer's keys and values (prefixes).

Two of them compute their vectors by a network.  It is dropped at rest: what is written, continued and used are the vectors alone.
"""

from pathlib import Path
from typing import Any

import torch
from peft import (
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    PromptTuningInit,
)

from tasks.core.errors import SpecError
from tasks.methods import PrefixTuning, PromptTuning, PTuning, PTuningV2
from tasks.training.methods import seq2seq_prefix
from tasks.training.methods.builder import Builder, adapted, write_peft
from tasks.training.models import PEFT_TASKS, Loaded, encodes

COMMON = 5000
"""words that a prompt is sampled from: the first tokens of a vocabulary are its most common (arXiv:2104.08691, section 3.2)"""
NOISE = 0.5
"""random vectors are uniform in +-NOISE (the same section)"""


def _wrapped(loaded: Loaded, config: PromptLearningConfig) -> Any:  # noqa: ANN401
    """`loaded.model` under a fresh soft prompt; nothing else but a fresh head is trained."""
    loaded.model.requires_grad_(False)
    return adapted(loaded.model, config)


def _prompt(loaded: Loaded, method: PromptTuning, task: str) -> Any:  # noqa: ANN401
    embed = loaded.model.get_input_embeddings()
    config = PromptTuningConfig(
        num_virtual_tokens=method.length,
        token_dim=embed.embedding_dim,
        prompt_tuning_init=PromptTuningInit.RANDOM,  # PEFT's text init would note where the tokenizer lies
        num_transformer_submodules=1,  # before the encoder's input; of two PEFT would leave the second unread
        task_type=PEFT_TASKS[task],
    )
    model = _wrapped(loaded, config)
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        if method.init == "random":
            weight.uniform_(-NOISE, NOISE)
        else:
            words = _sampled(loaded, len(weight)) if method.init == "vocabulary" else _spelled(loaded, method.text, len(weight))
            weight.copy_(embed(torch.tensor(words, device=embed.weight.device)))
    return model


def _sampled(loaded: Loaded, count: int) -> list[int]:
    """Common words, none twice while there are enough; special tokens are none."""
    tokenizer = loaded.tokenizer
    special = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    words = [i for i in range(min(COMMON, len(tokenizer))) if i not in special]
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += [words[i] for i in torch.randperm(len(words)).tolist()]
    return drawn[:count]


def _spelled(loaded: Loaded, text: str, count: int) -> list[int]:
    """The tokens of `text`, repeated or cut."""
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise SpecError(f"method prompt_tuning: its text {text!r} has no tokens to start from; give words, or init: vocabulary")
    return (ids * (count // len(ids) + 1))[:count]


def _encoded(loaded: Loaded, method: PTuning, task: str) -> Any:  # noqa: ANN401
    config = PromptEncoderConfig(
        num_virtual_tokens=method.length,
        token_dim=loaded.model.get_input_embeddings().embedding_dim,
        encoder_reparameterization_type=method.encoder.upper(),
        encoder_hidden_size=method.hidden,
        num_transformer_submodules=1,
        task_type=PEFT_TASKS[task],
    )
    return _wrapped(loaded, config)


def _prefix(loaded: Loaded, method: PrefixTuning | PTuningV2, task: str) -> Any:  # noqa: ANN401
    """PEFT takes layers, key-value heads and their width from the model; an encoder it would leave out."""
    if encodes(loaded.model):
        loaded.model.requires_grad_(False)
        return adapted(loaded.model, seq2seq_prefix.config(method, PEFT_TASKS[task]))
    network = {"prefix_projection": True, "encoder_hidden_size": method.hidden} if isinstance(method, PrefixTuning) else {}
    return _wrapped(loaded, PrefixTuningConfig(num_virtual_tokens=method.length, task_type=PEFT_TASKS[task], **network))


def write_vectors(model: Any, folder: Path) -> None:  # noqa: ANN401
    """Write the vectors, whatever computed them, as a plain prompt or prefix; and the head, if there is one."""
    if isinstance(model.peft_config["default"], seq2seq_prefix.Seq2SeqPrefixConfig):
        seq2seq_prefix.write(model, folder)
        return
    write_peft(model, folder)
    resting(model.peft_config["default"]).save_pretrained(str(folder))


def resting(config: PeftConfig) -> PromptLearningConfig:
    """The configuration under which PEFT reads the vectors of a model with `config`."""
    assert isinstance(config, PromptLearningConfig)
    shape = {
        name: getattr(config, name)
        for name in ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
    }
    heads = sorted(set(config.modules_to_save or ())) or None
    kind = PrefixTuningConfig if isinstance(config, PrefixTuningConfig) else PromptTuningConfig
    return kind(**shape, task_type=config.task_type, modules_to_save=heads, inference_mode=True)


PROMPT = Builder(_prompt, write=write_vectors)
ENCODED = Builder(_encoded, write=write_vectors)
PREFIX = Builder(_prefix, write=write_vectors)
