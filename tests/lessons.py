"""A plan that learns task after task on the tiny model, and its tasks."""

import json
import random

import tiny

PLAN = """
name: lessons
model: {base: ./tiny}
sft: {method: {name: full}, max_steps: 40, global_batch: 8, max_length: 128, learning_rate: 5.0e-3}
tasks:
  - {name: birds, data: {sources: [birds.jsonl], heldout: 0.3}}
  - {name: colours, data: {sources: [colours.jsonl], heldout: 0.3}}
execution: {device: cpu}
"""
LORA = "sft.method={name: lora, rank: 8}"
ANSWERS = {"birds": ("the bird says yes", "cat"), "colours": ("no red green blue", "sky"), "dogs": ("one two three", "dog")}


def write_task(folder, name, rows=40):
    """Questions that end in a word of the task, all answered alike, a word of the question told back."""
    draw = random.Random(name)
    words, (answer, mark) = tiny.WORDS, ANSWERS[name]
    lines, seen = [], set()
    while len(lines) < rows:
        said = draw.sample(words, 3)
        if (question := " ".join(said) + f" {mark}") not in seen:
            seen.add(question)
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{answer} {said[0]}"}]
            lines.append(json.dumps({"messages": turns}))
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
