"""A stand-in for a vLLM server: its protocol, spoken by a tiny transformers model that reads adapter folders by PEFT.

No vLLM is here, so what this shows is that we speak the protocol and learn from what comes back, not how vLLM behaves.
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

FIELDS = {
    "model", "prompt", "seed", "temperature", "max_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "return_token_ids",
    "skip_special_tokens", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "n",
}  # fmt: skip
"""of a question; one may also ask for `logprobs`"""


class LoopbackVllm:
    """A reply to every question: what `endpoint.serve` wants."""

    def __init__(self, base: Path, *, deaf: bool = False) -> None:
        """base: folder of the served model.  deaf: adapters are taken up, and the base answers all the same."""
        self._base, self._deaf = base, deaf
        self.held: dict[str, object] = {}
        """adapters as they are now, by name"""
        self.moves: list[tuple[str, str]] = []
        """(`load` or `unload`, name), in their order"""

    def __call__(self, asked, number):
        if "lora_path" in asked:
            return self._load(asked["lora_name"], asked["lora_path"])
        if "lora_name" in asked:
            return self._unload(asked["lora_name"])
        return self._complete(asked)

    def _load(self, name, path):
        if name in self.held:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not Path(path, "adapter_config.json").is_file():
            return error(404, f"No adapter found for {path}")
        base = AutoModelForCausalLM.from_pretrained(self._base)
        self.held[name] = (base if self._deaf else PeftModel.from_pretrained(base, path)).eval()
        self.moves.append(("load", name))
        return 200, f"Success: LoRA adapter '{name}' added successfully.", {}

    def _unload(self, name):
        if name not in self.held:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        del self.held[name]
        self.moves.append(("unload", name))
        return 200, f"Success: LoRA adapter '{name}' removed successfully.", {}

    def _complete(self, asked):
        if asked.keys() - {"logprobs"} != FIELDS:
            return error(400, f"fields {sorted(asked.keys() ^ FIELDS)}")
        if asked["model"] not in self.held:
            return error(404, f"The model `{asked['model']}` does not exist.")
        tokens, logps = speak(self.held[asked["model"]], asked)
        choice = {
            "index": 0, "text": "", "finish_reason": "stop" if tokens[-1] in asked["stop_token_ids"] else "length",
            "token_ids": tokens, "logprobs": {"token_logprobs": logps} if "logprobs" in asked else None,
        }  # fmt: skip
        return 200, json.dumps({"choices": [choice]}), {}


@torch.no_grad()
def speak(model, asked):
    """Tokens of an answer, and their log-probabilities before temperature and mask."""
    draw = torch.Generator().manual_seed(asked["seed"])
    ids, logps, start = list(asked["prompt"]), [], len(asked["prompt"])
    while len(ids) - start < asked["max_tokens"]:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
        share = logits / asked["temperature"]
        if len(ids) - start < asked["min_tokens"]:
            share[asked["stop_token_ids"]] = -torch.inf
        token = int(torch.multinomial(share.softmax(-1), 1, generator=draw))
        logps.append(float(logits.log_softmax(-1)[token]))
        ids.append(token)
        if token in asked["stop_token_ids"]:
            break
    return ids[start:], logps


def error(status, message):
    """A refusal as vLLM writes it."""
    return status, json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}), {}
