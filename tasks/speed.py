"""How long a stage takes before it runs: the operations of a token, and the rate of the machine.  Imports no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.machine import matmul_rate
from tasks.methods import METHODS, AnyMethod, StageName
from tasks.shapes import Shape, trained


@dataclass(frozen=True)
class Rate:
    """How fast this machine is, and how that is known."""

    flops: float
    """multiplications and additions per second that training reaches"""
    source: str


_REACHED = 0.4
"""share of a large matrix product's speed that a training step reaches: SmolLM2-135M under LoRA, 105 tokens/s where a product ran
at 130 GFLOP/s, is 0.44; one measurement, rounded down"""


def here() -> Rate:
    """The rate of this machine's CPU from a small matrix product."""
    return Rate(_REACHED * matmul_rate(), "a matrix product on this CPU")


_MORE_PASSES: Mapping[str, float] = {"dpo": 1.0, "kto": 2.0}
"""forward passes beside the one that is learned from: the reference's, and KTO's of answers to other prompts"""


def flops_per_token(shape: Shape, method: AnyMethod, stage: StageName, longest: int, *, checkpointing: bool) -> float:
    """Operations per token: 2 per weight forward, 2 for the gradient of activations, 2 for that of trained matrices.

    The passes of references and the recomputation of checkpointing are forward passes more; attention is 4 per pair of
    positions and width, halved by causality.
    """
    active = shape.parameters - shape.count(lambda t: ".experts." in t.name) * (1 - shape.active / max(1, shape.experts))
    if re.search("reward|task", stage):
        active -= shape.vocabulary * shape.hidden
    forward = 2 * active + 2 * shape.layers * longest * shape.queries
    whole = 2 * min(active, trained(shape, method, stage))
    backward = 0.0 if method.name == "head" else forward
    again = _MORE_PASSES.get(stage, 0.0) + (1.0 if checkpointing and METHODS[method.name].checkpointing else 0.0)
    return forward * (1 + again) + backward + whole


def online_flops(
    shape: Shape, method: AnyMethod, stage: StageName, *, prompt: float, new: int, updates: int, checkpointing: bool, judged: bool
) -> float:
    """Operations per token of an answer, whose prompt has `prompt` tokens: writing it, being told of it, learning from it.

    Writing reads every weight to multiply few, about a third of the rate of training.  Told: once by each of policy, reference
    and, for PPO, value model; `judged`: by a reward model.
    """
    whole = (prompt + new) / new
    forward = 2 * shape.parameters
    told = {"ppo": 3, "grpo": 2, "rloo": 2}[stage] + judged
    learned = flops_per_token(shape, method, "sft", int(prompt + new), checkpointing=checkpointing)
    return 3 * forward + whole * (told * forward + updates * learned * (2 if stage == "ppo" else 1))
