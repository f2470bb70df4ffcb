"""PPO on the tiny model: a job run in this process, on a policy that knows a little."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import tiny

from tasks.core.contract import Execution, Metrics, Run
from tasks.ppo import PpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training import ppo

WARNINGS = ("ignore::FutureWarning:transformers", "ignore::DeprecationWarning", "ignore:Already found a `peft_config`")
FINISHED = {"rewards": [{"rule": "finished"}], "missing_eos_penalty": 0.0}
MODEL = {"rewards": [{"rule": "reward_model"}]}


def spec(method: str = "lora", **more: Any) -> PpoSpec:
    """Two iterations of eight answers, each learned twice in two minibatches: eight steps."""
    fields = {
        "method": tiny.METHOD[method], "iterations": 2, "rollout_batch": 8, "global_batch": 4, "max_new_tokens": 6,
        "max_length": 64, "learning_rate": 5e-3, **FINISHED, **more,
    }  # fmt: skip
    return PpoSpec.model_validate(fields)


class Studio:
    """Policies, reward models and runs, made once where they are dear."""

    def __init__(self, shop: Any, train: Any, root: Path) -> None:
        self.shop, self._train, self._root, self._runs = shop, train, root, 0
        self.clearance = root / "clearance"
        self.clearance.mkdir()
        (self.clearance / "clearance.json").write_text('{"mean": 0.25, "std": 0.5, "answers": 64}')
        self.sft = cache(self._sft)
        self.reward_model = cache(self._reward_model)

    def _sft(self, method: str = "full") -> Path:
        rate, steps = (1e-2, 40) if method == "full" else (2e-2, 4)
        fields = {"method": tiny.METHOD[method], "max_steps": steps, "global_batch": 16, "learning_rate": rate}
        return self._train("sft", SftSpec.model_validate(fields))[0]

    def _reward_model(self, below: str = "full", method: str = "lora") -> Path:
        """A reward model of `method` on the SFT policy of method `below`."""
        fields = {"method": tiny.METHOD[method], "max_steps": 4, "global_batch": 8, "learning_rate": 1e-2}
        return self._train("reward", RewardSpec.model_validate(fields), self.sft(below))[0]

    def inputs(self, policy: Path, *, reward: Path | None = None, data: bool = False) -> dict[str, Path]:
        more = {"reward_model": reward, "clearance": self.clearance} if reward else {}
        held = {"data": self.shop.preferences} if data else {}
        return {"policy": policy, "prompts": self.shop.prompts, **more, **held}

    def fresh(self, name: str) -> Path:
        self._runs += 1
        folder = self._root / f"{self._runs}-{name}"
        folder.mkdir()
        return folder

    def run(self, log: Any = None, work: Path | None = None, progress: Any = None, **execution: Any) -> Run:
        more = {"log": log} if log else {}
        more |= {"progress": progress} if progress else {}
        return Run(work or self.fresh("work"), self.shop.models, Execution(device="cpu", **execution), **more)

    def practise(
        self,
        asked: PpoSpec,
        policy: Path | None = None,
        *,
        reward: Path | None = None,
        data: bool = False,
        run: Run | None = None,
    ) -> tuple[Path, Metrics]:
        """Payload folder and metrics."""
        out = self.fresh("out")
        inputs = self.inputs(policy or self.sft(), reward=reward, data=data)
        return out, ppo.run(asked, inputs, out, run or self.run())


def curve(out: Path) -> list[dict[str, float]]:
    """The rows of training.json."""
    return json.loads((out / "training.json").read_text())
