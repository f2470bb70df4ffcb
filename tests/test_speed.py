"""Speed: operations per token of training, and of sampling and learning."""

import pytest
from shaping import method_of

from tasks.shapes import of_parameters
from tasks.speed import flops_per_token, online_flops


def test_a_token_of_an_answer_costs_writing_telling_and_learning():
    shape, lora = of_parameters(135e6), method_of("lora")

    def of(stage, updates):
        return online_flops(
            shape, lora, stage, prompt=64, new=32, updates=updates, checkpointing=False, judged=True
        ) / (2 * shape.parameters)  # fmt: skip

    # written: 3; told: (3 or 2) + 1 passes of 3 tokens per answer token; learned: 2 passes of 3 tokens, for PPO twice
    assert of("ppo", 2) == pytest.approx(3 + 3 * 4 + 2 * 2 * 3 * 2, rel=0.05)
    assert of("grpo", 1) == pytest.approx(3 + 3 * 3 + 1 * 3 * 2, rel=0.05)


def test_lora_multiplies_a_third_less_than_full_and_dpo_a_pass_more():
    shape = of_parameters(135e6)

    def of(method: str, stage, again: bool = False) -> float:
        return flops_per_token(shape, method_of(method), stage, 1, checkpointing=again)

    assert of("full", "sft") == pytest.approx(6 * shape.parameters, rel=1e-3)
    assert of("lora", "sft") == pytest.approx(4 * shape.parameters, rel=0.02)
    assert of("lora", "kto") == pytest.approx(8 * shape.parameters, rel=0.02)
    assert of("lora", "dpo") == of("lora", "sft", again=True) == pytest.approx(6 * shape.parameters, rel=0.02)
