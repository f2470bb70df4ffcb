"""A reward model that the user brings, with a tokenizer and template of its own: imported, refused, scored with, in a plan."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from smoke import write_smoke

from flows.explain import Explain
from flows.loading import load as load_plan
from flows.pipeline import pipeline
from flows.plan import Plan
from tasks.base import materialise
from tasks.core.build import Workshop
from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.core.store import Store
from tasks.health import CLEARANCE, HEALTH, HealthSpec
from tasks.measure import RewardsSpec
from tasks.policy import base_path, read_record
from tasks.reward_model import REWARD_MODEL, RewardModelSpec, bring_reward_model, reward_request
from tasks.tables import write_answers

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
DEMO = Path(__file__).parents[1] / "flows" / "plans" / "demo.yaml"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEMPLATE = (  # the space before an answer becomes part of its first token
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
LOCAL = RewardModelSpec(model="local")


def write_judge(folder: Path) -> Path:
    """A tiny random Llama classifier with one label, whose tokenizer and template are unlike those of `tiny.write_model`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(["another vocabulary of other words entirely"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, num_labels=1, pad_token_id=2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def shop(tmp_path):
    return Workshop(Store(tmp_path / "store"), tmp_path / "models", Execution(device="cpu"))


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def write_inputs(root: Path, shop: Workshop) -> dict[str, Path]:
    """A policy, its answers, and held-out pairs."""
    words = tiny.sentences(60)
    ids = [f"{i:03}" for i in range(24)]
    pairs = [
        {"id": i, "conversation": i, "prompt": said(words[n]), "chosen": f"yes {words[n + 1]}", "rejected": f"no {words[n + 20]}"}
        for n, i in enumerate(ids)
    ]
    answers = [
        {
            "id": i,
            "conversation": i,
            "task": "",
            "prompt": said(words[n]),
            "answer": words[n + 30],
            "tokens": n % 7,
            "finished": True,
        }
        for n, i in enumerate(ids)
    ]
    (root / "answers").mkdir()
    write_answers(root / "answers", answers)
    return {
        "policy": tiny.write_policy(root / "policy", shop.models, tiny.write_model(root / "source")),
        "preferences": tiny.write_rows(root / "pairs", "heldout", pairs),
        "answers": root / "answers",
    }


def test_it_is_a_reward_model_on_no_chain_with_its_own_tokenizer_and_template(source, shop):
    made, built = shop.build(REWARD_MODEL, LOCAL, {"source": source})
    record = read_record(made.path)
    assert (built, made.kind, record.task, record.chain, record.base.name) == (True, "reward_model", "reward", (), "local")
    assert made.metrics["model_type"] == "llama"
    assert made.metrics["parameters"] == sum(tensor.size for tensor in load_file(source / "model.safetensors").values())
    folder = base_path(shop.models, record.base)
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert str(source) not in (made.path / "policy.json").read_text()


def test_texts_are_tokenised_again_as_transformers_would_and_its_health_is_measured(source, shop, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from tasks.training import rewards
    from tasks.training.models import load
    from tasks.training.roles import OwnReward

    made, _ = shop.build(REWARD_MODEL, LOCAL, {"source": source})
    given = write_inputs(tmp_path, shop)
    run = Run(tmp_path / "work", shop.models, Execution(device="cpu", micro_batch=5))
    run.work.mkdir()
    (tmp_path / "scores").mkdir()
    judged = {"reward_model": made.path, "preferences": given["preferences"], "answers_sft": given["answers"]}
    metrics = rewards.run(RewardsSpec(), judged, tmp_path / "scores", run)
    assert metrics["pairs_left_out"] == 0

    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    rows = {
        (row["subject"], row["metric"], row["item"]): row["value"]
        for row in pq.read_table(tmp_path / "scores/scores.parquet").to_pylist()
    }
    texts = {
        ("sft", "reward", row["id"]): (row, row["answer"])
        for row in pq.read_table(given["answers"] / "answers.parquet").to_pylist()
    }
    for row in pq.read_table(given["preferences"] / "heldout.parquet").to_pylist():
        texts |= {("reward_model", f"{side}_reward", row["id"]): (row, row[side]) for side in ("chosen", "rejected")}
    for key, (row, answer) in texts.items():
        text = tokenizer.apply_chat_template([*row["prompt"], {"role": "assistant", "content": answer}], tokenize=False)
        ids = tokenizer.encode(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            assert rows[key] == pytest.approx(model(ids).logits.item(), abs=1e-5)

    card, _ = shop.build(HEALTH, HealthSpec(accept_weak=True), {**given, "scores": tmp_path / "scores", "reward_model": made})
    record = json.loads((card.path / "health.json").read_text())
    assert record["agreement"] == {"base": False, "tokenizer": False, "template": False}
    assert "a tokenizer of its own, so texts are tokenised again for it" in (card.path / "health.md").read_text()
    cleared, _ = shop.build(CLEARANCE, HealthSpec(accept_weak=True).clearance(), {"health": card})
    scores = [value for key, value in rows.items() if key[0] == "sft"]
    assert cleared.metrics["mean"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert cleared.metrics["std"] == pytest.approx(np.std(scores), rel=1e-5)

    asked = [(row, answer) for key, (row, answer) in texts.items() if key[0] == "sft"]
    beside = OwnReward(made.path, run).scores([(row["prompt"], answer) for row, answer in asked], 5)
    assert beside == pytest.approx([rows["sft", "reward", row["id"]] for row, _ in asked], abs=1e-5)  # PPO reads it alike

    loaded = load(made.path, run, task="reward")
    assert (loaded.record.task, loaded.model.config.num_labels) == ("reward", 1)
    with pytest.raises(DataError, match="where a policy is needed"):
        load(made.path, run, task="policy")


def changed(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def two_labels(folder):
    changed(folder, id2label={"0": "good", "1": "bad"})


def unsaid_labels(folder):
    config = json.loads((folder / "config.json").read_text())
    config.pop("id2label", None)
    (folder / "config.json").write_text(json.dumps(config))


def two_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"score.weight": np.ones((2, 24), np.float32)}, folder / "model.safetensors")


def no_head(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors")


def writer(folder):
    changed(folder, architectures=["LlamaForCausalLM"])


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def own_code(folder):
    changed(folder, auto_map={"AutoModelForSequenceClassification": "modeling.Judge"})


def pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (two_labels, "it has 2 labels, and a reward model has one"),
        (unsaid_labels, "it has 2 labels"),  # what transformers takes where nothing is said
        (two_numbers, "its head gives 2 numbers"),
        (no_head, r"its weights hold no score\.weight"),
        (writer, "a LlamaForCausalLM gives no score; give a sequence classifier"),
        (no_tokenizer, "there is no tokenizer"),
        (no_template, "its tokenizer has no chat template"),
        (own_code, "wants to run code of its own"),
        (pickle, "weights only as pytorch_model.bin"),
    ],
)
def test_what_cannot_judge_is_refused_in_one_sentence(damage, sentence, source, shop, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "judge"))
    damage(folder)
    with pytest.raises(SpecError, match=f"^reward model( local)?: .*{sentence}") as refused:
        shop.build(REWARD_MODEL, LOCAL, {"source": folder})
    assert "\n" not in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


def test_a_hub_model_is_brought_at_its_commit_and_brought_again_when_lost(source, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, local_dir, allow_patterns):
        asked.append((name, revision))
        shutil.copytree(source, local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    spec, files = reward_request("org/judge", COMMIT, Path())
    assert files == {}
    run, out = Run(tmp_path / "work", tmp_path / "models"), tmp_path / "out"
    out.mkdir()
    bring_reward_model(spec, {}, out, run)
    base = read_record(out).base
    assert asked == [("org/judge", COMMIT)]
    shutil.rmtree(base_path(run.models, base))
    assert (materialise(base, run) / "model.safetensors").is_file()
    assert asked == [("org/judge", COMMIT)] * 2


def test_a_lost_local_one_names_the_command_that_brings_it(source, tmp_path):
    run, out = Run(tmp_path / "work", tmp_path / "models"), tmp_path / "out"
    out.mkdir()
    bring_reward_model(LOCAL, {"source": source}, out, run)
    base = read_record(out).base
    shutil.rmtree(base_path(run.models, base))
    with pytest.raises(MachineError, match="`align rerun reward-model PLAN` a reward model"):
        materialise(base, run)


# -- in a plan ---------------------------------------------------------------------------------------------------


def steps(plan: Plan, shop: Workshop) -> dict[str, dict[str, str]]:
    explain = Explain(shop)
    pipeline(plan, explain)
    return {
        step.name: {name: "a path" if isinstance(source, Path) else source.name for name, source in step.inputs.items()}
        for step in explain.steps
    }


def test_a_plan_brings_it_instead_of_training_one(source, shop):
    plan = load_plan(DEMO, [f"reward={{pretrained: {source}}}", "policy={algorithm: ppo}"])
    found = steps(plan, shop)
    assert found["reward-model"] == {"source": "a path"}
    assert "reward" not in found
    assert found["rewards"]["reward_model"] == found["rewards-practice"]["reward_model"] == "reward-model"
    assert found["ppo"]["reward_model"] == "reward-model"
    assert found["release"]["reward_model"] == "reward-model"
    assert plan.trained_reward is None
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan
    assert str(source) not in str(plan.reward.spec())


def test_its_folder_is_seen_from_the_plan(source, tmp_path):
    shutil.copytree(source, tmp_path / "judge")
    text = DEMO.read_text().replace("../../datasets", str(DEMO.parents[2] / "datasets"))
    (tmp_path / "plan.yaml").write_text(text)
    plan = load_plan(tmp_path / "plan.yaml", ["reward={pretrained: ./judge}"])
    assert plan.reward.files() == {"source": tmp_path / "judge"}


@pytest.mark.parametrize(
    ("reward", "sentence"),
    [
        ("{pretrained: ./nowhere}", r"reward\.pretrained: .*nowhere is not a folder"),
        ("{pretrained: org/judge}", r"reward: pretrained: base org/judge: revision None can move or is missing"),
        ("{pretrained: org/judge, revision: main}", "revision 'main' can move"),
        ("{pretrained: smollm2-135m-instruct}", "it writes text and gives no score"),
        (f"{{pretrained: org/judge, revision: {COMMIT}, methd: full}}", r"reward\.methd: no such field"),
        ("{max_step: 3}", r"reward\.max_step: no such field; did you mean max_steps\?"),
        ("{max_steps: 0}", r"reward\.max_steps: should be greater than 0"),
    ],
)
def test_a_plan_with_a_wrong_one_is_refused_with_its_place(reward, sentence):
    with pytest.raises(SpecError, match=sentence):
        load_plan(DEMO, [f"reward={reward}"])


@pytest.mark.slow
def test_a_policy_learns_from_it_beside_a_rule(source, tmp_path, monkeypatch):
    folder = write_smoke(tmp_path / "smoke", None).folder
    shutil.copytree(source, folder / "judge")
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ALIGN_MODELS", str(tmp_path / "models"))
    ppo = "iterations: 2, rollout_batch: 8, global_batch: 4, max_new_tokens: 8, max_length: 1024"
    rewards = "rewards: [{rule: reward_model, clip: 2.0}, {rule: length, unit: tokens, at_least: 2, weight: 0.5}]"
    plan = load_plan(
        folder / "plan.yaml",
        [
            "reward={pretrained: ./judge}",
            f"policy={{algorithm: ppo, {ppo}, {rewards}}}",
            "health.accept_weak=true",
            "gates=[{metric: text_perplexity_ratio, against: base, at_most: 9}]",
        ],
    )
    shop, made = plan.workshop(), {}

    def build(stage, spec, inputs, *, name=None):
        if "ppo" not in made:  # what comes after it is measured in other tests
            made[name or stage.name], _ = shop.build(stage, spec, inputs)
        return made.get(name or stage.name)

    pipeline(plan, build)
    curve = json.loads((made["ppo"].path / "training.json").read_text())
    assert {"reward", "kl"} <= curve[-1].keys()
    card = json.loads((made["health"].path / "health.json").read_text())
    assert card["agreement"]["tokenizer"] is False
    assert made["clearance"].metrics["std"] == card["scores"]["answers"]["std"]
    assert made["ppo"].inputs["reward_model"] == made["reward-model"].digest


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        ("[{rule: regex, pattern: '(a'}]", r"policy\.rewards\.0\.pattern: not a regular expression \(missing \) at position 2\)"),
        ("[{rule: finished}, {rule: length}]", r"policy\.rewards\.1: a length without bounds"),
        ("[{rule: finished, weight: 0}]", r"policy\.rewards: every weight is 0"),
        ("[{rule: exact_number}]", "policy: its reward exact_number compares with references, which pairs lack"),
    ],
)
@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo", "online_dpo"])
def test_a_plan_with_wrong_rule_rewards_is_refused_with_their_place(rewards, sentence, algorithm):
    with pytest.raises(SpecError, match=sentence):
        load_plan(DEMO, [f"policy={{algorithm: {algorithm}, rewards: {rewards}}}"])
