"""Tiny models and data, and a way to run a training job in this process."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import tiny
from tiny import write_rows

from tasks.core.contract import Execution, Metrics, Run
from tasks.core.spec import Spec


@dataclass(frozen=True)
class Shop:
    """Inputs for training on the tiny model."""

    root: Path
    models: Path
    policy: Path
    instructions: Path
    preferences: Path
    prompts: Path

    def inputs(self, job: str, policy: Path | None = None) -> dict[str, Path]:
        if job == "merge":
            return {"policy": policy or self.policy, "prompts": self.prompts}
        data = self.instructions if job == "sft" else self.preferences
        return {"policy": policy or self.policy, "data": data}


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    words = tiny.sentences(120)
    policy = tiny.write_policy(root / "policy", root / "models", tiny.write_model(root / "source"))
    for split, span in (("train", range(32)), ("heldout", range(40, 46))):
        turns = [[*_messages(words[i]), {"role": "assistant", "content": words[i + 1]}] for i in span]
        write_rows(root / "inst", split, [{"id": str(i), "messages": turn} for i, turn in enumerate(turns)])
        pairs = [
            {"id": str(i), "prompt": _messages(words[i]), "chosen": "yes " + words[i + 1], "rejected": "no " + words[i + 2]}
            for i in span
        ]
        write_rows(root / "pref", split, pairs)
    write_rows(root / "prom", "prompts", [{"id": f"{i:03}", "prompt": _messages(words[i])} for i in range(60, 66)])
    return Shop(root, root / "models", policy, root / "inst", root / "pref", root / "prom")


@pytest.fixture(scope="session")
def train(shop, tmp_path_factory) -> Callable[..., tuple[Path, Metrics]]:
    """`train(job, spec, policy=..., **execution)` runs it in this process and returns payload folder and metrics."""

    def run(job: str, spec: Spec, policy: Path | None = None, work: Path | None = None, **execution) -> tuple[Path, Metrics]:
        work = work or tmp_path_factory.mktemp("work")
        out = tmp_path_factory.mktemp("out")
        execution = Execution(device="cpu", **execution)
        function = import_module(f"tasks.training.{job}").run
        return out, function(spec, shop.inputs(job, policy), out, Run(work, shop.models, execution))

    return run


@pytest.fixture(scope="session")
def sft_policies(train) -> Callable[[str], Path]:
    """`sft_policies("lora")`: a policy trained for 3 steps by that method, made once."""
    from tasks.train import SftSpec

    made: dict[str, Path] = {}

    def get(method: str) -> Path:
        if method not in made:
            spec = SftSpec.model_validate(
                {"method": tiny.METHOD[method], "max_steps": 3, "global_batch": 8, "learning_rate": 1e-2}
            )
            made[method], _ = train("sft", spec)
        return made[method]

    return get


@pytest.fixture(scope="session")
def studio(shop, train, tmp_path_factory):
    """Where PPO is practised, see `practising.Studio`."""
    from practising import Studio

    return Studio(shop, train, tmp_path_factory.mktemp("studio"))
