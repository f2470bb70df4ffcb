# pyright: basic
"""RLOO on TRL's RLOOTrainer: the KL is part of an answer's reward, its baseline the mean reward of the prompt's others."""

from pathlib import Path
from typing import Any

from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from tasks.core.contract import Inputs, Metrics, Run
from tasks.group import RlooSpec
from tasks.training.group import GroupTrainer, train


class _Rloo(GroupTrainer, RLOOTrainer):
    weighed = ("entropy",)

    def _generate_single_turn(self, prompt_ids: Any, *_: object, **__: object) -> Any:  # noqa: ANN401
        return self._answers(prompt_ids)


def run(spec: RlooSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on rewards of its own answers to `inputs["prompts"]`."""
    return train(_Rloo, RLOOConfig, spec, inputs, out, run, normalize_advantages=False)
