"""Whether vLLM would serve an adapter folder as one of its LoRA modules, told from the folder alone: no vLLM, no torch.

The rules are read in vLLM's sources, at these commits, and said in our words: `vllm/lora/peft_helper.py` at e745bafff (fields of
adapter_config.json: `from_dict`, `validate_legal`; biases are refused always since then), `vllm/lora/lora_model.py` at 0306474e9
(files and tensors: `from_local_checkpoint`), `vllm/lora/utils.py` at 001e63a89 (names of tensors: `parse_fine_tuned_lora_name`;
no biases since then), `vllm/config/lora.py` at 01230b401 (`MaxLoRARanks`), `docs/models/supported_models.md` at 0046f770d.  What
vLLM would load and then serve otherwise than PEFT does, because it never looks at the field, counts as not served.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""what `--max-lora-rank` may be"""
_REQUIRED = ("r", "lora_alpha", "target_modules")
_UNREAD = {
    "rank_pattern": "ranks of single modules",
    "alpha_pattern": "scales of single modules",
    "alora_invocation_tokens": "activated LoRA, which starts in the middle of a prompt",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on parameters, such as fused experts",
    "trainable_token_indices": "trained rows of the embedding",
    "lora_bias": "a bias of LoRA's own",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "megatron_config": "Megatron layers",
}
"""fields of PEFT's LoraConfig that change what an adapter computes and that vLLM ignores, in words"""
_NO_LORA = frozenset(
    "ArcticForCausalLM BloomForCausalLM DbrxForCausalLM DeepseekV4ForCausalLM ExaoneMoeForCausalLM FalconForCausalLM "  # noqa: SIM905
    "FalconMambaForCausalLM FlexOlmoForCausalLM GPT2LMHeadModel GPTJForCausalLM GPTNeoXForCausalLM Gemma3nForCausalLM "
    "Jais2ForCausalLM KimiLinearForCausalLM Mamba2ForCausalLM MambaForCausalLM MiMoV2FlashForCausalLM MptForCausalLM "
    "MPTForCausalLM OlmoeForCausalLM OrionForCausalLM RWForCausalLM StableLmForCausalLM Step3p5ForCausalLM "
    "Zamba2ForCausalLM".split()
)
"""decoders that vLLM serves with an implementation of its own that takes no LoRA"""
_MODULE = re.compile(r"base_model\.model\.(?P<module>.+)\.(?P<side>lora_[AB]\.weight|lora_embedding_[AB])")


@dataclass(frozen=True)
class VllmLora:
    """What vLLM would say to an adapter folder."""

    problems: tuple[str, ...]
    """why it would not serve it, a clause each; none: it does"""
    max_rank: int | None
    """the least `--max-lora-rank` that takes it; None where there is a problem"""

    def command(self, base: str, name: str, folder: str, *, quantised: bool = False) -> str:
        """How it is served.

        >>> VllmLora((), 16).command("org/base", "poet", "./poet")
        'vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules poet=./poet'
        """
        return f"{self.server(base, quantised=quantised)} --lora-modules {name}={folder}"

    def server(self, base: str, *, quantised: bool = False) -> str:
        """How a server is started that may take it up."""
        held = " --quantization bitsandbytes" if quantised else ""
        return f"vllm serve {base}{held} --enable-lora --max-lora-rank {self.max_rank}"


def vllm_lora(folder: Path, base: Mapping[str, Any]) -> VllmLora:
    """Judge the adapter in `folder` for the model whose config.json is `base`."""
    path = folder / CONFIG
    if not path.is_file():
        return VllmLora((f"there is no {CONFIG}",), None)
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        return VllmLora((f"its adapter is of type {config.get('peft_type')}, and vLLM reads LoRA alone",), None)
    missing = [name for name in _REQUIRED if config.get(name) is None]
    if missing:
        return VllmLora((f"{CONFIG} lacks {', '.join(missing)}",), None)
    problems = (*of_model(base), *_of_config(config)) or tuple(_of_tensors(folder / WEIGHTS, config["r"]))
    return VllmLora(problems, None if problems else next(rank for rank in MAX_RANKS if rank >= config["r"]))


def of_model(base: Mapping[str, Any]) -> Iterator[str]:
    """Why vLLM would serve no adapter on the model whose config.json is `base`, a clause each."""
    for name in base.get("architectures") or ():
        if name in _NO_LORA:
            yield f"vLLM's {name} takes no LoRA"
    if base.get("is_encoder_decoder"):
        yield "vLLM serves no LoRA on encoder-decoder models"


def _of_config(config: Mapping[str, Any]) -> Iterator[str]:
    if config["r"] > MAX_RANKS[-1]:
        yield f"its rank is {config['r']}, and {MAX_RANKS[-1]} is the most that vLLM takes"
    if config.get("use_dora"):
        yield "it is DoRA, which vLLM does not support"
    if config.get("bias", "none") != "none":
        yield f"it trains biases (bias: {config['bias']}), which vLLM does not support"
    if config.get("modules_to_save"):
        yield f"it holds whole modules ({', '.join(config['modules_to_save'])}), and vLLM takes none"
    for name, words in _UNREAD.items():
        if config.get(name):
            yield f"it uses {words} ({name}), which vLLM does not read"


def _of_tensors(path: Path, rank: int) -> Iterator[str]:
    """Every tensor must be one side of a pair of this rank, on a linear layer or embedding of the language model."""
    if not path.is_file():
        yield f"there is no {WEIGHTS}"
        return
    sides: dict[str, set[str]] = {}
    for name, shape in shapes(path).items():
        found = _MODULE.fullmatch(name)
        if not found or "base_layer" in name:
            yield f"vLLM cannot read the tensor {name}"
            return
        module, side = found["module"], found["side"]
        if re.search(r"(^|\.)(vision\w*|visual)\.", module):
            yield f"it changes {module}, and vLLM changes the language model alone"
            return
        first = "_A" in side
        if len(shape) != 2 or shape[0 if first else 1] != rank:
            yield f"{name} is {' x '.join(map(str, shape))}, which is not of rank {rank}"
            return
        sides.setdefault(module, set()).add("A" if first else "B")
    if not sides:
        yield f"{WEIGHTS} holds no tensor"
    if half := [module for module, there in sides.items() if len(there) < 2]:
        yield f"{half[0]} lacks one of lora_A and lora_B"


def shapes(path: Path) -> dict[str, list[int]]:
    """Shape of each tensor in a safetensors file, by its header."""
    with path.open("rb") as file:
        header: dict[str, dict[str, Any]] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
