# pyright: basic
"""PPO as a user of TRL's last public trainer runs it: policy under LoRA, a full reward model, a full value model.

Runs in an environment of its own (trl 1.12.0) and imports nothing of this project.  Reads a JSON file of settings, prints
one line of JSON.  Answers have a fixed length: without a stop token the trainer never ends one early.

python plain_ppo.py SETTINGS
"""

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

asked = json.loads(Path(sys.argv[1]).read_text())
torch.set_num_threads(asked["threads"])
torch.manual_seed(0)


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM for the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


class Clock(TrainerCallback):
    """When each iteration ended, and how much processor time was used by then."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> object:
        self.times.append((time.perf_counter(), time.process_time()))
        return control


tokenizer = AutoTokenizer.from_pretrained(asked["model"], padding_side="left")
tokenizer.pad_token_id = 0  # another than the stop token, which the trainer would mask wherever a turn ends
clock = Clock()
load = {"dtype": torch.float32}
reward, value = (
    AutoModelForSequenceClassification.from_pretrained(asked["model"], num_labels=1, pad_token_id=0, **load) for _ in range(2)
)
trainer = PPOTrainer(
    args=PPOConfig(
        output_dir=asked["out"], use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, num_sample_generations=0, learning_rate=1e-5, seed=0,
        total_episodes=asked["iterations"] * asked["rollout"], num_ppo_epochs=asked["epochs"], num_mini_batches=1,
        per_device_train_batch_size=asked["micro"], gradient_accumulation_steps=asked["rollout"] // asked["micro"],
        response_length=asked["answer"], temperature=1.0, stop_token=None, missing_eos_penalty=None, kl_coef=0.05,
    ),
    processing_class=tokenizer,
    model=AutoModelForCausalLM.from_pretrained(asked["model"], **load),
    ref_model=None,  # the policy with its adapter off
    reward_model=reward,
    value_model=value,
    train_dataset=Dataset.from_dict({"input_ids": asked["prompts"]}),
    eval_dataset=Dataset.from_dict({"input_ids": asked["prompts"][:1]}),
    callbacks=[clock],
    peft_config=LoraConfig(r=asked["rank"], lora_alpha=2 * asked["rank"], target_modules="all-linear", task_type="CAUSAL_LM"),
)  # fmt: skip
trainer.train()
pairs = list(zip(clock.times, clock.times[1:], strict=False))  # the first iteration warms up
seconds, busy = ([after[i] - before[i] for before, after in pairs] for i in (0, 1))
print(json.dumps({"seconds": seconds, "cpu_seconds": busy, "peak": memory("VmHWM")}))  # noqa: T201
