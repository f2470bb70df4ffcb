# pyright: basic
"""GRPO on TRL's GRPOTrainer: eq. 3 of arXiv:2402.03300, each answer's mean over its tokens, over the group's deviation."""

from pathlib import Path
from typing import Any

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from tasks.core.contract import Inputs, Metrics, Run
from tasks.group import GrpoSpec
from tasks.training.group import GroupTrainer, train


class _Grpo(GroupTrainer, GRPOTrainer):
    weighed = ("kl", "entropy", "clip_ratio/region_mean")

    def _generate_single_turn(self, prompt_ids: Any, *_: object, **__: object) -> Any:  # noqa: ANN401
        return self._answers(prompt_ids), None


def run(spec: GrpoSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on rewards of its own answers to `inputs["prompts"]`."""
    return train(_Grpo, GRPOConfig, spec, inputs, out, run, loss_type="grpo", scale_rewards="group")
