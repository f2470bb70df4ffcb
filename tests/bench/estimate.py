"""The memory estimate against measured peaks: ten configurations, a child process each, one after the other.

python -m tests.bench.estimate [FIRST [LAST]]      prints a table row each; bench-results/estimate.json keeps what was measured
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ["HF_HUB_OFFLINE"] = "1"
RESULTS = ROOT / "bench-results" / "estimate.json"
SIZES: dict[str, tuple[int, ...]] = {
    "9M": (256, 8, 4, 2, 768, 8192),
    "25M": (384, 12, 6, 2, 1024, 16384),
    "114M": (1024, 8, 16, 4, 2816, 32000),
    "SmolLM2": (),
}
"""hidden, layers, heads, key heads, inner, vocabulary of random Llamas; SmolLM2 is the embedded base"""
CASES: list[tuple[str, str, dict[str, Any], int, int, bool]] = [
    ("9M", "sft", {"name": "lora"}, 512, 4, False),
    ("25M", "sft", {"name": "full"}, 256, 4, False),
    ("25M", "dpo", {"name": "lora"}, 256, 2, False),
    ("25M", "reward", {"name": "layer_norm"}, 384, 2, False),
    ("25M", "sft", {"name": "prefix_tuning"}, 512, 4, False),
    ("25M", "sft", {"name": "lora"}, 512, 8, True),
    ("114M", "sft", {"name": "full"}, 128, 2, True),
    ("114M", "sft", {"name": "qlora"}, 256, 2, False),
    ("SmolLM2", "sft", {"name": "lora"}, 256, 2, False),
    ("SmolLM2", "dpo", {"name": "dora", "rank": 8}, 128, 2, True),
]
"""size, stage, method, tokens of the longest text, rows of a micro-batch, gradient checkpointing"""


def base(size: str, folder: Path) -> tuple[Path, Path, Path]:
    """The policy artifact, the folder of weights and the model cache of a size."""
    import tiny

    from tasks.base import BaseSpec, build_base
    from tasks.core.contract import Run
    from tasks.policy import base_path, read_record

    policy, models = folder / size / "policy", folder / "models"
    if not policy.is_dir():
        policy.mkdir(parents=True)
        if size == "SmolLM2":
            build_base(BaseSpec(model="smollm2-135m-instruct"), {}, policy, Run(folder, models))
        else:
            tiny.write_policy(policy, models, _random(folder / size / "source", SIZES[size]), size)
    return policy, base_path(models, read_record(policy).base), models


def _random(folder: Path, sizes: tuple[int, ...]) -> Path:
    import tiny
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny.write_model(folder)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    shape = dict(zip(names, sizes, strict=True))
    config = AutoConfig.from_pretrained(folder)
    config.update({**shape, "head_dim": shape["hidden_size"] // shape["num_attention_heads"], "max_position_embeddings": 4096})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def spec(stage: str, method: dict[str, Any]) -> Any:
    """The stage's spec at its defaults."""
    from tasks.preference import DpoSpec
    from tasks.train import RewardSpec, SftSpec

    kind = {"sft": SftSpec, "dpo": DpoSpec, "reward": RewardSpec}[stage]
    return kind.model_validate({"method": method})


def main(first: int, last: int) -> None:
    """Measure the cases from `first` to `last` and print them beside their estimates."""
    from tasks import estimate
    from tasks.core.contract import Execution, Run
    from tasks.memory import Work
    from tasks.probe import probe
    from tasks.shapes import of_folder

    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    cache = Path(os.environ.get("ALIGN_BENCH_MODELS") or tempfile.mkdtemp())
    columns = ("model", "stage", "method", "tokens x rows", "checkpointing", "estimate", "measured", "error")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")  # noqa: T201
    for size, stage, method, longest, rows, checkpointing in CASES[first:last]:
        policy, folder, models = base(size, cache)
        asked = spec(stage, method)
        work = Work(rows=rows, longest=longest, texts=1 if stage == "sft" else 2, checkpointing=checkpointing)
        need = estimate.training(of_folder(folder), asked.method, stage, work)
        name = f"{size} {stage} {json.dumps(method)} {longest} x {rows} {checkpointing}"
        if name not in known or "ALIGN_BENCH_AGAIN" in os.environ:
            execution = Execution(device="cpu", gradient_checkpointing=checkpointing)
            found = probe(asked, policy, folder, Run(cache, models, execution), rows=rows, longest=longest)
            known[name] = found._asdict()
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(known, indent=1))
        peak = known[name]["peak"]
        label = method["name"] + (f" r{method['rank']}" if "rank" in method else "")
        cells = [size, stage, label, f"{longest} x {rows}", "on" if checkpointing else "off", f"{need.total / 1e9:.2f} GB"]
        cells += [f"{peak / 1e9:.2f} GB", f"{100 * (need.total / peak - 1):+.0f} %"]
        print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    main(numbers[0] if numbers else 0, numbers[1] if len(numbers) > 1 else len(CASES))
