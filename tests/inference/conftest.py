"""A tiny policy with every kind of adapter, and its held-out data."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from tasks.core.contract import Execution, Run


@dataclass(frozen=True)
class Bench:
    """Inputs for measuring on the tiny model."""

    models: Path
    policy: Path
    prompts: Path
    preferences: Path
    instructions: Path
    texts: Path


def write_rows(folder: Path, name: str, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    root = tmp_path_factory.mktemp("bench")
    words = tiny.sentences(80, seed=3)
    named = [{"id": f"{i:03}", "conversation": f"c{i // 2}", "task": "t", "words": words[3 * i : 3 * i + 3]} for i in range(9)]
    named.reverse()  # readers order by id themselves

    def rows(**columns) -> list[dict]:
        return [
            {"id": row["id"], "conversation": row["conversation"], "task": row["task"]}
            | {name: make(*row["words"]) for name, make in columns.items()}
            for row in named
        ]

    return Bench(
        root / "models",
        tiny.write_policy(root / "policy", root / "models", tiny.write_model(root / "source")),
        write_rows(root / "prompts", "prompts", rows(prompt=lambda a, b, c: user(a), reference=lambda a, b, c: b)),
        write_rows(
            root / "preferences", "heldout",
            rows(prompt=lambda a, b, c: user(a), chosen=lambda a, b, c: b, rejected=lambda a, b, c: "no " + c),
        ),
        write_rows(
            root / "instructions", "heldout",
            rows(messages=lambda a, b, c: [*user(a), assistant(b), *user(c), assistant(a)]),
        ),
        write_rows(root / "texts", "texts", rows(text=lambda a, b, c: f"{a}. {b}. {c}.")),
    )  # fmt: skip


@pytest.fixture
def run(bench, tmp_path) -> Run:
    (tmp_path / "work").mkdir()
    return Run(tmp_path / "work", bench.models, Execution(device="cpu"))


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(params=["plain", "lora", "prompt", "prefix"])
def adapted(request, bench, run):
    """The loaded policy as it is, or under an adapter with random weights."""
    import torch
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    from tasks.training.models import load

    torch.manual_seed(5)
    loaded = load(bench.policy, run)
    config = {
        "plain": None,
        "lora": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
        "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    }[request.param]
    if config is None:
        return loaded
    model = get_peft_model(loaded.model, config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "prompt_encoder" in name:
                weight.normal_()
    return loaded.replace(model)
