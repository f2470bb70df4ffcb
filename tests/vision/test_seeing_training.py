"""Training on pictures: what moves and what stays, what is learned, and that reload, merge, resume and cutting change nothing."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_vision import COLOURS, asked, other, picture, put

from tasks.core.contract import Run
from tasks.core.errors import SpecError
from tasks.core.files import tree
from tasks.core.launch import MICRO_BATCH
from tasks.generate import AnswersSpec
from tasks.measure import RewardsSpec, ScoresSpec
from tasks.merge import MergeSpec
from tasks.methods import METHODS, VISION_METHODS
from tasks.preference import DpoSpec
from tasks.shapes import of_folder, trained
from tasks.tables import read_rows
from tasks.train import RewardSpec, SftSpec
from tasks.training.adapters import start
from tasks.training.data import encode_instructions
from tasks.training.models import load
from tasks.training.vision import encoder_for
from tasks.training.vision_models import seeing

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SPECS = {"sft": SftSpec, "reward": RewardSpec, "dpo": DpoSpec}


def spec(job, method=None, **more):
    fields = {"method": method or {"name": "lora", "rank": 4}, "max_steps": 4, "global_batch": 6, "learning_rate": 1e-3}
    return SPECS[job].model_validate({**fields, **more})


def data(studio, job):
    return studio.instructions if job == "sft" else studio.preferences


def weights(studio, policy, task=None):
    """Every weight of a policy as one plain model."""
    return {name: p.detach().clone() for name, p in load(policy, studio.at(), task=task, merged=True).model.named_parameters()}


def moved(studio, policy):
    """Names of the weights that differ from the base's."""
    before, after = weights(studio, studio.policy), weights(studio, policy)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def named(studio, policy, prompts=None):
    """Id of a prompt -> what the policy answers."""
    out, _ = studio.run("generate", AnswersSpec(max_new_tokens=4), policy=policy, prompts=prompts or studio.prompts)
    return {row["id"]: row["answer"] for row in read_rows(out / "answers.parquet")}


def right(answers):
    """Share of answers about pictures that name the colour, and no other."""
    found = [
        colour in answer and not any(wrong in answer for wrong in COLOURS if wrong != colour)
        for name, answer in answers.items() for colour in COLOURS if name.startswith(colour)
    ]  # fmt: skip
    return sum(found) / len(found)


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


def test_it_learns_to_name_the_colours_of_pictures_it_has_not_seen(studio, taught):
    assert right(named(studio, studio.policy)) <= 1 / 3  # a random model says nothing of the kind
    answers = named(studio, taught(studio))
    assert len(answers) == 7
    assert right(answers) >= 5 / 6  # chance: 1 / 3


def test_what_it_says_follows_the_picture_and_not_the_row(studio, taught, tmp_path):
    rows = [
        {"id": f"{colour}{i}", "conversation": "x", "task": None, "prompt": asked(), "images": [put(tmp_path, other(colour), i)]}
        for i in range(2) for colour in COLOURS
    ]  # fmt: skip
    answers = named(studio, taught(studio), tiny.write_rows(tmp_path, "prompts", rows))
    assert right(answers) <= 1 / 6
    assert right({f"{other(re.sub('[0-9]', '', name))}-": answer for name, answer in answers.items()}) >= 2 / 3


@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_adapters_move_the_language_model_and_nothing_that_sees(studio, method):
    out, _ = studio.run("sft", spec("sft", {"name": method, "rank": 4}), data=studio.instructions)
    eyes = tuple(f"{part}." for part in seeing(load(studio.policy, studio.at()).model))
    changed = moved(studio, out)
    assert changed
    assert not [name for name in changed if name.startswith(eyes)]
    kinds = {name.rpartition(".layers.")[2].partition(".")[2] for name in changed}
    wanted = {f"self_attn.{x}_proj.weight" for x in "qkvo"} | {f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
    assert kinds == wanted
    held = load_file(next(out.glob("adapters/*/adapter_model.safetensors")))
    assert not [name for name in held if any(eye in name for eye in eyes)]


def test_targets_that_name_modules_mean_those_of_the_language_model(studio):
    out, _ = studio.run("sft", spec("sft", {"name": "lora", "rank": 4, "targets": ["q_proj"]}), data=studio.instructions)
    eyes = tuple(f"{part}." for part in seeing(load(studio.policy, studio.at()).model))
    changed = moved(studio, out)
    assert len(changed) == 2  # layers
    assert all(name.endswith("q_proj.weight") and not name.startswith(eyes) for name in changed)


@pytest.mark.parametrize("targets", ["all-linear", "all-linear+vision", ["q_proj"]])
def test_the_estimate_counts_what_is_trained(studio, targets):
    asked_for = spec("sft", {"name": "lora", "rank": 4, "targets": targets}, max_steps=1)
    _, metrics = studio.run("sft", asked_for, data=studio.instructions)
    assert trained(of_folder(studio.source), asked_for.method) == metrics["trainable_parameters"]


@pytest.mark.parametrize("method", [{"name": "lora", "rank": 4, "targets": "all-linear+vision"}, {"name": "full"}])
def test_what_sees_is_trained_when_it_is_asked_for(studio, method):
    out, _ = studio.run("sft", spec("sft", method), data=studio.instructions)
    eyes = seeing(load(studio.policy, studio.at()).model)
    changed = moved(studio, out)
    assert all(any(name.startswith(f"{eye}.") for name in changed) for eye in eyes)
    assert any("layers.1.mlp.down_proj" in name for name in changed)


def test_a_base_in_four_bits_is_trained_too(llava):
    out, metrics = llava.run("sft", spec("sft", {"name": "qlora", "rank": 4}), data=llava.instructions)
    assert metrics["last_loss"] < metrics["first_loss"]
    assert json.loads((out / "policy.json").read_text())["quantization"] == "nf4"
    assert right(named(llava, out)) <= 1  # it loads and answers


def test_dpo_starts_at_its_reference_and_prefers_the_chosen_colour(studio, taught):
    method = {"name": "lora", "rank": 8}
    fields = {"max_steps": 20, "global_batch": 12, "learning_rate": 5e-3}
    out, metrics = studio.run("dpo", spec("dpo", method, **fields), policy=taught(studio), data=studio.preferences)
    assert metrics["first_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics["first_step_log_ratio"] < 1e-4
    assert metrics["start"] == "continue"
    assert metrics["last_loss"] < 0.55
    before, after = (logps(studio, policy) for policy in (taught(studio), out))
    margins = [
        [at[row, "chosen_logp"] - at[row, "rejected_logp"] for row, side in at if side == "chosen_logp"] for at in (before, after)
    ]
    assert sum(new > old for old, new in zip(*margins, strict=True)) >= 0.9 * len(margins[0])  # pairs that were held out


def logps(studio, policy, **more):
    out, _ = studio.run("score", ScoresSpec(), policy=policy, preferences=studio.preferences, **more)
    return scores(out)


def scores(out):
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    return {(row["item"], row["metric"]): row["value"] for row in rows if row["metric"] != "chosen_longer"}


def test_the_wrong_picture_makes_the_right_answer_unlikely(studio, taught, tmp_path):
    rows = read_rows(studio.preferences / "heldout.parquet")
    swapped = [
        {**row, "images": row["images"] and [put(tmp_path, other(row["chosen"]), i)], "conversation": "x"}
        for i, row in enumerate(rows)
    ]
    tiny.write_rows(tmp_path, "heldout", swapped)
    shown = logps(studio, taught(studio))
    lied = scores(studio.run("score", ScoresSpec(), policy=taught(studio), preferences=tmp_path)[0])
    names = [row["id"] for row in rows if row["images"]]
    assert sum(shown[name, "chosen_logp"] > lied[name, "chosen_logp"] for name in names) >= 0.9 * len(names)
    assert shown["text", "chosen_logp"] == pytest.approx(lied["text", "chosen_logp"], abs=1e-5)


def test_answers_and_scores_do_not_depend_on_the_batch(studio, taught):
    policy = taught(studio)
    at_once, one_by_one = [], []
    for found, rows in ((at_once, "64"), (one_by_one, "1")):
        work = studio.folder("cut")
        (work / MICRO_BATCH).write_text(rows)
        answers, _ = studio.run("generate", AnswersSpec(max_new_tokens=6), work=work, policy=policy, prompts=studio.prompts)
        out, _ = studio.run(
            "score", ScoresSpec(), work=work, policy=policy, preferences=studio.preferences, instructions=studio.instructions
        )
        found += [read_rows(answers / "answers.parquet"), scores(out)]
    assert at_once[0] == one_by_one[0]
    assert at_once[1] == pytest.approx(one_by_one[1], abs=2e-4)
    assert len(at_once[1]) == 2 * 19 + 19


def test_answers_keep_the_pictures_that_were_asked_about(llava, taught):
    out, _ = llava.run("generate", AnswersSpec(max_new_tokens=1), policy=taught(llava), prompts=llava.prompts)
    rows = read_rows(out / "answers.parquet")
    assert [row["images"] for row in rows] == [row["images"] for row in read_rows(llava.prompts / "prompts.parquet")]
    assert payload(out / "images") == payload(llava.prompts / "images")


def test_a_merged_policy_is_the_policy_and_sees_as_well(studio, taught):
    out, certificate = studio.run("merge", MergeSpec(), policy=taught(studio), prompts=studio.prompts)
    assert certificate["max_logit_distance"] < 1e-4 < certificate["adapter_effect"]
    assert certificate["prompts"] == 7
    assert {"processor_config.json", "chat_template.jinja", "model.safetensors"} <= payload(out / "model").keys()
    assert named(studio, out) == named(studio, taught(studio))
    assert logps(studio, out) == pytest.approx(logps(studio, taught(studio)), abs=1e-3)


def test_a_merge_is_compared_on_whole_images(studio, taught):
    _, certificate = studio.run("merge", MergeSpec(max_length=2, prompts=2), policy=taught(studio), prompts=studio.prompts)
    assert certificate["tokens"] > 2 * 4  # an image is never cut, whatever max_length says


@pytest.mark.parametrize("job", ["sft", "dpo", "reward"])
def test_a_resumed_run_equals_the_unbroken_one(studio, taught, tmp_path, job):
    policy = studio.policy if job == "sft" else taught(studio)
    method = {"name": "lora", "rank": 4, "dropout": 0.1 if job == "sft" else 0.0}
    given = {"policy": policy, "data": data(studio, job), "checkpoint_every": 2}
    whole, _ = studio.run(job, spec(job, method, max_steps=6), work=tmp_path, **given)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-6")
    resumed, metrics = studio.run(job, spec(job, method, max_steps=6), work=tmp_path, **given)
    assert metrics["resumed_at_step"] == 4
    assert payload(resumed) == payload(whole)


@pytest.mark.parametrize("job", ["sft", "dpo"])
@pytest.mark.parametrize("other_way", [{"micro_batch": 1}, {"gradient_checkpointing": True}])
def test_how_a_batch_is_cut_changes_nothing(studio, job, other_way):
    usual, _ = studio.run(job, spec(job), data=data(studio, job), micro_batch=6)
    cut, _ = studio.run(job, spec(job), data=data(studio, job), **other_way)
    one, two = (load_file(next(out.glob("adapters/*/adapter_model.safetensors"))) for out in (usual, cut))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-5


def test_a_saved_policy_loads_as_it_was_trained(studio, taught):
    out = taught(studio)
    run = studio.at()
    loaded = load(out, run)
    encoder = encoder_for(loaded, studio.instructions)
    row = encode_instructions(encoder, read_rows(studio.instructions / "heldout.parquet")[:1], max_length=500).rows[0]
    ids = torch.tensor([row["input_ids"]])
    seen = encoder.seen(ids, [row["pictures"]])
    with torch.no_grad():
        again = loaded.model(input_ids=ids, **seen).logits
        begun = start(out, spec("sft", {"name": "lora", "rank": 8}), run)
        assert begun.how == "continue"
        assert torch.equal(begun.model.eval()(input_ids=ids, **seen).logits, again)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_ranks_the_colours_of_pictures(studio, taught, method):
    steps = {"max_steps": 50, "global_batch": 12, "learning_rate": 5e-3}
    out, metrics = studio.run("reward", spec("reward", {"name": method}, **steps), policy=taught(studio), data=studio.preferences)
    assert metrics["heldout_accuracy"] >= 0.9
    answers, _ = studio.run("generate", AnswersSpec(max_new_tokens=3), policy=taught(studio), prompts=studio.prompts)
    given = {"reward_model": out, "preferences": studio.preferences, "answers_candidate": answers}
    first, found = studio.run("rewards", RewardsSpec(), **given)
    second, _ = studio.run("rewards", RewardsSpec(), **given)
    assert payload(first) == payload(second)  # the head is held, not made anew
    assert found["chosen_reward/reward_model"] - found["rejected_reward/reward_model"] == pytest.approx(
        metrics["heldout_margin"], abs=1e-3
    )
    assert "reward/candidate" in found
    head = weights(studio, out, "reward")["score.weight"]
    assert torch.equal(head, weights(studio, out, "reward")["score.weight"])
    if method == "lora":
        eyes = tuple(f"{part}." for part in seeing(load(studio.policy, studio.at()).model))
        before, after = weights(studio, studio.policy), weights(studio, out, "reward")
        assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(eyes))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in VISION_METHODS])
def test_other_methods_are_refused_by_name(llava, name):
    stage = "sft" if "sft" in METHODS[name].learning_rate else "reward"
    with pytest.raises(SpecError, match=f"method {name}: a vision-language base is trained by full, lora"):
        llava.run(stage, spec(stage, tiny.METHOD[name]), data=data(llava, stage))


def test_vision_targets_need_a_base_that_sees(tmp_path):
    policy = tiny.write_policy(tmp_path / "policy", tmp_path / "models", tiny.write_model(tmp_path / "source"))
    with pytest.raises(SpecError, match=r"targets all-linear\+vision: the base sees no images; use all-linear"):
        start(policy, spec("sft", {"name": "lora", "targets": "all-linear+vision"}), Run(tmp_path, tmp_path / "models"))


def test_a_prompt_that_spells_the_image_token_is_an_error_with_its_id(llava, tmp_path):
    rows = [{"id": "odd", "conversation": "x", "task": None, "prompt": asked("what is <image>"), "images": None}]
    tiny.write_rows(tmp_path, "prompts", rows)
    with pytest.raises(Exception, match="prompt odd: the model cannot be asked this"):
        llava.run("generate", AnswersSpec(max_new_tokens=1), prompts=tmp_path)


def test_pictures_are_the_same_bytes_each_time():
    assert picture("red", 1) == picture("red", 1) != picture("red", 2)
