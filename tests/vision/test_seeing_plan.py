"""A whole plan on pictures by the real command line: three spellings of data, every stage, a release that can be exported."""

import json
import re
import subprocess
import sys

import pytest
from smoke import ROOT, Smoke, ended
from tiny_vision import COLOURS, other, picture, write_vision_model

from flows.loading import load
from tasks.core.errors import SpecError

PLAN = """
name: see
model: {base: ./tiny}
data:
  instructions: {sources: [{path: rows/shown.json, images: rows}], heldout: 0.3, quarantine_budget: 0.5}
  preferences: {sources: [{path: rows/pairs.jsonl, images: rows}], heldout: 0.3}
  prompts: {sources: [{path: rows/asked.jsonl, images: rows}]}
sft: {method: {name: lora, rank: 8}, max_steps: 40, global_batch: 8, learning_rate: 0.005}
reward: {method: {name: lora, rank: 8}, max_steps: 4, global_batch: 4}
policy: {method: {name: lora, rank: 8}, max_steps: 4, global_batch: 4}
evaluation: {answers: {max_new_tokens: 4}, metrics: [exact_match]}
gates:
  - {metric: exact_match, at_least: 0.5}
execution: {device: cpu, parallel: 2, threads: 1, checkpoint_every: 20}
"""
QUESTION = "what colour is the sky"


def write_folder(folder):
    """Twelve pictures of each colour, told about in LLaMA-Factory's, TRL's and OpenAI's spelling; two rows are broken."""
    rows = folder / "rows"
    (rows / "pictures").mkdir(parents=True)
    names = [(colour, f"pictures/{colour}{i}.png") for i in range(20) for colour in COLOURS]
    for colour, name in names:
        (rows / name).write_bytes(picture(colour, int(re.sub(r"\D", "", name))))
    shown = [
        {"conversations": [{"from": "human", "value": f"<image>{QUESTION}"}, {"from": "gpt", "value": colour}], "images": [name]}
        for colour, name in names
    ]
    shown += [{**shown[0], "images": ["pictures/gone.png"]}, {**shown[0], "images": ["https://example.org/red.png"]}]
    (rows / "shown.json").write_text(json.dumps(shown))
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    pairs = [
        {"prompt": [{"role": "user", "content": parts}], "images": [name],
         **{side: [{"role": "assistant", "content": word}] for side, word in (("chosen", c), ("rejected", other(c)))}}
        for c, name in names[:36]
    ]  # fmt: skip
    asked = [
        {"messages": [{"role": "user", "content": [{"type": "image", "path": name}, {"type": "text", "text": QUESTION}]}],
         "reference": colour}
        for colour, name in names[-12:]
    ]  # fmt: skip
    for name, lines in (("pairs", pairs), ("asked", asked)):
        (rows / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_vision_model(folder / "tiny")
    (folder / "plan.yaml").write_text(PLAN)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sft.method={name: prompt_tuning}", "reward=null", "policy=null"], "sft: method prompt_tuning"),
        (["reward.method={name: head}"], "reward: method head"),
        (["compare={methods: [{method: {name: bitfit}}, {method: {name: lora}}]}"], "compare: method bitfit"),
    ],
)
def test_a_method_that_cannot_train_it_is_refused_when_the_plan_is_loaded(folder, overrides, said):
    with pytest.raises(SpecError, match=f"{said}: a vision-language base is trained by full, lora"):
        load(folder / "plan.yaml", overrides)


@pytest.mark.parametrize("algorithm", ["kto", "orpo", "grpo", "rloo", "ppo"])
def test_an_algorithm_that_reads_text_alone_is_refused_when_the_plan_is_loaded(folder, algorithm):
    with pytest.raises(SpecError, match=f"policy: {algorithm}: the base is a vision-language model, and {algorithm} reads text"):
        load(folder / "plan.yaml", [f"policy={{algorithm: {algorithm}}}"])


def test_vision_targets_on_a_text_model_are_refused_when_the_plan_is_loaded(folder):
    asked = ["sft.method={name: lora, targets: all-linear+vision}"]
    load(folder / "plan.yaml", asked)
    with pytest.raises(SpecError, match=r"sft: targets all-linear\+vision: the base sees no images"):
        load(folder / "plan.yaml", [*asked, "model.base=smollm2-135m-instruct"])


def test_paths_of_images_are_relative_to_the_plan(folder):
    plan = load(folder / "plan.yaml")
    assert plan.data.instructions.files() == {"0": folder / "rows" / "shown.json", "0.images": folder / "rows"}


@pytest.mark.slow
def test_a_plan_on_pictures_is_run_released_and_exported(folder):
    made = Smoke(folder, None)
    printed = made.align("run", "plan.yaml")
    assert "released" in printed
    stages = ended(printed)
    assert {stages[name] for name in ("curate-instructions", "sft", "reward", "dpo", "merge", "release")} == {"built"}
    quarantine = (next(folder.glob("store/instructions/*/report.md"))).read_text()
    assert "**62** records read = **60** kept + **2** in quarantine" in quarantine
    data = [path for path in folder.glob("store/*/*/*.parquet") if path.name not in ("quarantine.parquet", "dropped.parquet")]
    assert len(data) >= 7
    assert not [path for path in data if b"pictures/" in path.read_bytes()]
    (folder / "rows" / "pictures" / "red0.png").write_bytes(picture("red", 99))  # another picture under the same name
    assert made.states()["curate-instructions"] == "missing"
    made.align("export", "champion", "exported")
    code = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
processor = AutoProcessor.from_pretrained("exported")
model = AutoModelForImageTextToText.from_pretrained("exported").eval()
for colour, name in (line.split() for line in sys.argv[1:]):
    parts = [{"type": "image"}, {"type": "text", "text": "what colour is the sky"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False)
    given = processor(text=[text], images=[[Image.open(name).convert("RGB")]], add_special_tokens=False, return_tensors="pt")
    said = model.generate(**given, max_new_tokens=4, do_sample=False)[0, given["input_ids"].shape[1]:]
    print(colour, processor.decode(said, skip_special_tokens=True))
"""
    shown = [f"{colour} rows/pictures/{colour}19.png" for colour in COLOURS]
    outcome = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *shown], cwd=folder, env=made.environment, text=True,
                             capture_output=True, timeout=120)  # fmt: skip
    assert outcome.stdout.split() == [word for colour in COLOURS for word in (colour, colour)], outcome.stderr
    assert ROOT.is_dir()
