"""What one would write without this project: one TRL trainer in one script.  Used to compare speed, on the same rows and steps.

python -m tests.bench.plain STAGE MODEL ROWS OUT STEPS SFT_ADAPTER GLOBAL_BATCH LEARNING_RATE
"""

import sys

import pyarrow.parquet as pq
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

stage, model, rows, out, steps, adapter, batch, rate = sys.argv[1:]
read = pq.read_table(rows).to_pylist()
tokenizer = AutoTokenizer.from_pretrained(model)
common = {
    "output_dir": out, "max_steps": int(steps), "per_device_train_batch_size": 8, "gradient_accumulation_steps": int(batch) // 8,
    "learning_rate": float(rate), "max_length": 256, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
    "save_strategy": "no", "report_to": "none", "logging_steps": 1, "lr_scheduler_type": "cosine", "warmup_steps": 1,
}  # fmt: skip


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


if stage == "sft":
    data = Dataset.from_list([{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in read])
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    trainer = SFTTrainer(loaded, SFTConfig(**common), train_dataset=data, processing_class=tokenizer, peft_config=lora)
else:
    pairs = [{"prompt": row["prompt"], "chosen": answer(row["chosen"]), "rejected": answer(row["rejected"])} for row in read]
    data = Dataset.from_list(pairs)
    if stage == "reward":
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
        loaded = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype="float32")
        loaded.config.pad_token_id = tokenizer.pad_token_id
        trainer = RewardTrainer(loaded, RewardConfig(**common), train_dataset=data, processing_class=tokenizer, peft_config=lora)
    else:
        base = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
        policy = PeftModel.from_pretrained(base, adapter, is_trainable=True)
        trainer = DPOTrainer(policy, args=DPOConfig(beta=0.1, **common), train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.save_model(out)
