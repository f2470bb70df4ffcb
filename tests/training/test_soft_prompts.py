"""Soft prompts through every stage: what they start from and train, how they rest, continue, resume, score and answer."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tasks.core.contract import Execution, Run
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.core.files import tree
from tasks.generate import AnswersSpec
from tasks.merge import MergeSpec
from tasks.methods import METHODS
from tasks.policy import base_path, read_record
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training import dpo, generate, reward, rewards, score, sft
from tasks.training.adapters import METHOD
from tasks.training.checkpoints import TRAINED, newest_complete
from tasks.training.data import Encoder, encode_pairs, encode_texts, read_rows
from tasks.training.methods.table import BUILDERS
from tasks.training.models import WEIGHTS, load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
P, HIDDEN, LAYERS, INNER = 5, 32, 2, 16
WIDTH = {"llama": HIDDEN // 4 * 2, "gpt2": HIDDEN}  # of all keys of a token: the Llama shares 2 key-value heads among 4
KINDS = {
    "prompt": {"name": "prompt_tuning", "length": P},
    "mlp": {"name": "p_tuning", "length": P, "hidden": INNER},
    "lstm": {"name": "p_tuning", "length": P, "hidden": INNER, "encoder": "lstm"},
    "prefix": {"name": "prefix_tuning", "length": P, "hidden": INNER},
    "v2": {"name": "p_tuning_v2", "length": P},
}
PREFIXES = ("prefix", "v2")
CASES = [*(("llama", kind) for kind in KINDS), ("gpt2", "prefix"), ("gpt2", "v2")]
JOBS = {"sft": (SftSpec, sft), "reward": (RewardSpec, reward), "dpo": (DpoSpec, dpo)}


def linear(given, taken):
    return given * taken + taken


def network(kind, width):
    """Weights beside the vectors in training; `width`: keys of a token."""
    gates = 4 * INNER
    lstm = 2 * (HIDDEN * gates + INNER * gates + 2 * gates) + 2 * (2 * INNER * gates + INNER * gates + 2 * gates)
    return {
        "prompt": 0,
        "v2": 0,
        "mlp": linear(HIDDEN, INNER) + linear(INNER, INNER) + linear(INNER, HIDDEN),
        "lstm": lstm + linear(2 * INNER, 2 * INNER) + linear(2 * INNER, HIDDEN),
        "prefix": linear(width, INNER) + linear(INNER, 2 * LAYERS * width),
    }[kind]


def shape(model, kind):
    return (P, 2 * LAYERS * WIDTH[model]) if kind in PREFIXES else (P, HIDDEN)


def spec(job, kind, **more):
    fields = {"method": KINDS[kind], "max_steps": 4, "global_batch": 32, "learning_rate": 1e-2, "warmup": 0, **more}
    return JOBS[job][0].model_validate(fields)


@pytest.fixture(scope="module")
def bases(shop, tmp_path_factory):
    """`bases(kind)`: a policy that is the tiny model of that kind."""
    root = tmp_path_factory.mktemp("bases")

    def get(kind: str) -> Path:
        if kind == "llama":
            return shop.policy
        if not (root / kind).exists():
            tiny.write_policy(root / kind, shop.models, tiny.write_model(root / f"{kind}-source", kind=kind), name=kind)
        return root / kind

    return get


@pytest.fixture(scope="module")
def trained(train, bases):
    """`trained(job, model, kind)`: payload, metrics, the trained model and its tensors at the start, each made once.

    Reward models and DPO policies go on from SFT.
    """
    made = {}

    def get(job: str, model: str, kind: str):
        if (job, model, kind) not in made:
            parent = bases(model) if job == "sft" else get("sft", model, kind)[0]
            seen = []
            with pytest.MonkeyPatch.context() as patch:
                real = JOBS[job][1].start

                def start(*given):
                    begin = real(*given)
                    seen.append((begin.model, {name: x.detach().clone() for name, x in tensors(begin.model)}))
                    return begin

                patch.setattr(JOBS[job][1], "start", start)
                out, metrics = train(job, spec(job, kind), parent)
            made[job, model, kind] = (out, metrics, *seen[0])
        return made[job, model, kind]

    return get


def tensors(model):
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers()


def loaded(shop, policy, **how):
    work = shop.root / "measuring"
    work.mkdir(exist_ok=True)
    return load(policy, Run(work, shop.models, Execution(device="cpu")), **how)


def logits(model):
    """Of one text, the soft prompt's own positions left out."""
    with torch.no_grad():
        return model.eval()(torch.arange(3, 40)[None]).logits[:, -37:]


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


def wrapped(shop, policy, method, task="policy", seed=0):
    """The model that a stage would train."""
    start = loaded(shop, policy, task=task, seed=seed)
    method = METHODS[method["name"]].spec.model_validate(method)
    return start.replace(BUILDERS[method.name].wrap(start, method, task))


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_the_vectors_and_their_network_move_and_nothing_else(trained, model, kind):
    _, metrics, after, before = trained("sft", model, kind)
    moved = {name for name, x in tensors(after) if not torch.equal(x, before[name])}
    assert moved == {name for name in before if name.startswith("prompt_encoder.default.")}
    vectors = P * (HIDDEN if kind not in PREFIXES else WIDTH[model] * (1 if kind == "prefix" else 2 * LAYERS))
    assert metrics["trainable_parameters"] == vectors + network(kind, WIDTH[model])
    assert metrics["last_loss"] < metrics["first_loss"]  # every step sees all 32 rows


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_at_rest_the_network_is_gone_and_peft_alone_reads_the_vectors(shop, bases, trained, model, kind):
    out, _, after, _ = trained("sft", model, kind)
    folder = out / "adapters/0-sft"
    assert {name: x.shape for name, x in load_file(folder / WEIGHTS).items()} == {"prompt_embeddings": shape(model, kind)}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == ("PREFIX_TUNING" if kind in PREFIXES else "PROMPT_TUNING")
    assert config["base_model_name_or_path"] == read_record(out).base.name
    assert not config.get("prefix_projection")
    assert not config.get("tokenizer_name_or_path")
    assert json.loads((folder / METHOD).read_text())["name"] == KINDS[kind]["name"]
    place = base_path(shop.models, read_record(out).base)
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place), folder)
    again = loaded(shop, out).model
    assert torch.equal(logits(alone), logits(again))
    assert (logits(again) - logits(after)).abs().max() < 1e-6  # a network's last bits may depend on the batch
    assert (logits(again) - logits(loaded(shop, bases(model)).model)).abs().max() > 1e-2
    with again.disable_adapter():
        assert torch.equal(logits(again), logits(loaded(shop, bases(model)).model))


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_leave_the_same_bytes_and_no_path(shop, train, trained, kind):
    again, _ = train("sft", spec("sft", kind), shop.policy)
    assert payload(again) == payload(trained("sft", "llama", kind)[0])
    assert [name for name, data in payload(again).items() if b"/tmp" in data or b"/models" in data] == []


def test_a_prompt_starts_from_common_words_none_twice_and_none_special(shop):
    start = wrapped(shop, shop.policy, {"name": "prompt_tuning", "length": 40})
    words = start.model.get_input_embeddings().weight
    rows = (start.model.prompt_encoder["default"].embedding.weight[:, None] == words).all(-1)
    drawn = rows.nonzero()[:, 1].tolist()
    assert len(set(drawn)) == len(drawn) == 40
    assert not set(drawn) & set(start.tokenizer.all_special_ids)
    vectors = [
        wrapped(shop, shop.policy, KINDS["prompt"], seed=seed).model.prompt_encoder["default"].embedding.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_a_prompt_longer_than_the_vocabulary_repeats_words(shop):
    start = wrapped(shop, shop.policy, {"name": "prompt_tuning", "length": 400})
    assert start.model.prompt_encoder["default"].embedding.weight.unique(dim=0).shape[0] == len(start.tokenizer) - 3


@pytest.mark.parametrize("length", [3, 11])
def test_a_prompt_starts_from_its_text_repeated_or_cut(shop, length):
    start = wrapped(shop, shop.policy, {"name": "prompt_tuning", "length": length, "init": "text", "text": "red cat says"})
    ids = start.tokenizer.encode("red cat says", add_special_tokens=False)
    wanted = start.model.get_input_embeddings().weight[(ids * length)[:length]]
    assert torch.equal(start.model.prompt_encoder["default"].embedding.weight, wanted)


def test_a_prompt_without_text_is_refused_and_random_ones_stay_within_the_papers_bounds(shop):
    with pytest.raises(SpecError, match="its text '' has no tokens to start from"):
        wrapped(shop, shop.policy, {"name": "prompt_tuning", "init": "text", "text": ""})
    start = wrapped(shop, shop.policy, {"name": "prompt_tuning", "length": 50, "init": "random"})
    vectors = start.model.prompt_encoder["default"].embedding.weight
    assert 0.45 < vectors.abs().max() <= 0.5


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_dpo_goes_on_with_the_resting_vectors_from_the_sft_policy(shop, trained, model, kind):
    start, _, _, _ = trained("sft", model, kind)
    out, metrics, after, before = trained("dpo", model, kind)
    assert (metrics["start"], read_record(out).adapters) == ("continue", ["0-sft"])
    assert metrics["first_step_log_ratio"] < 1e-3
    assert metrics["last_loss"] < metrics["first_loss"]
    assert list(after.peft_config) == ["default"]
    moved = {name for name, x in tensors(after) if not torch.equal(x, before[name])}
    assert moved == {"prompt_encoder.default.embedding.weight"}
    assert metrics["trainable_parameters"] == shape(model, kind)[0] * shape(model, kind)[1]
    resting = load_file(start / "adapters/0-sft" / WEIGHTS)["prompt_embeddings"]
    assert torch.equal(before["prompt_encoder.default.embedding.weight"], resting)
    assert torch.equal(logits(loaded(shop, out).model), logits(after))


def reference_of(shop, policy, work):
    """(known, wanted) log-probabilities of all answers under `policy`, one text at a time."""
    start = loaded(shop, policy)
    rows = encode_pairs(Encoder(start.tokenizer), read_rows(shop.preferences, "train"), max_length=100).rows
    for number, pair in json.loads((work / dpo.REFERENCE).read_text()).items():
        row = rows[int(number)]
        for ids, known in zip((row["chosen_ids"], row["rejected_ids"]), pair, strict=True):
            whole = torch.tensor([row["prompt_ids"] + ids])
            with torch.no_grad():
                logp = start.model(whole).logits[0, -whole.shape[1] : -1].log_softmax(-1)
            yield known, float(logp.gather(1, whole[0, 1:, None])[len(row["prompt_ids"]) - 1 :].sum())


@pytest.mark.parametrize("kind", ["lstm", "prefix"])
def test_the_reference_is_the_sft_policy(shop, train, trained, tmp_path, kind):
    policy = trained("sft", "llama", kind)[0]
    train("dpo", spec("dpo", kind, max_steps=1), policy, work=tmp_path)
    for known, wanted in reference_of(shop, policy, tmp_path):
        assert known == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_the_reference_of_a_fresh_prompt_is_the_policy_without_it(shop, train, tmp_path, kind):
    _, metrics = train("dpo", spec("dpo", kind, max_steps=2), shop.policy, work=tmp_path)
    assert metrics["start"] == "fresh"
    for known, wanted in reference_of(shop, shop.policy, tmp_path):
        assert known == pytest.approx(wanted, abs=1e-3)
    assert metrics["first_step_log_ratio"] > 5e-3  # the prompt moves the policy by being there


def texts_of(shop, start):
    encoder = Encoder(start.tokenizer)
    rows = encode_texts(encoder, read_rows(shop.preferences, "train", 12), max_length=200).rows
    return encoder, [row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_a_reward_model_scores_alike_alone_and_padded_in_training_and_after(shop, trained, model, kind):
    out, _, after, before = trained("reward", model, kind)
    moved = {name for name, x in tensors(after) if not torch.equal(x, before[name])}
    assert moved == {"prompt_encoder.default.embedding.weight", "base_model.score.modules_to_save.default.weight"}
    again = loaded(shop, out)
    encoder, texts = texts_of(shop, again)
    assert len({len(ids) for ids in texts}) > 3
    folder, place = out / "adapters/0-sft", base_path(shop.models, read_record(out).base)
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["classifier", "score"]
    peft_alone = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(place, num_labels=1), folder)
    with torch.no_grad():
        alone = [float(peft_alone.eval()(torch.tensor([ids]), torch.ones(1, len(ids))).logits) for ids in texts]
    assert max(alone) - min(alone) > 1e-3
    for scored in (after, again.model):
        assert reward.score_texts(scored, encoder, texts, batch=1) == pytest.approx(alone, abs=1e-5)
        assert reward.score_texts(scored, encoder, texts, batch=7) == pytest.approx(alone, abs=1e-5)
    run = Run(shop.root / "measuring", shop.models, Execution(device="cpu"))
    assert rewards.values(again, encoder, texts, run) == pytest.approx(alone, abs=1e-5)


def test_a_padded_training_batch_has_the_scores_of_its_texts_alone(shop, trained):
    out, _, after, _ = trained("reward", "llama", "mlp")
    encoder, texts = texts_of(shop, loaded(shop, out))
    longest = max(map(len, texts))
    ids = torch.tensor([text + [encoder.pad] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    after.train()
    with torch.no_grad():
        padded = after(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
    assert padded.tolist() == pytest.approx(reward.score_texts(after, encoder, texts, batch=1), abs=1e-5)


@pytest.mark.parametrize(
    ("job", "kind"), [("sft", "lstm"), ("sft", "mlp"), ("sft", "prefix"), ("reward", "lstm"), ("dpo", "prefix"), ("dpo", "v2")]
)
def test_a_resumed_run_leaves_the_bytes_of_the_unbroken_one(train, bases, trained, tmp_path, job, kind):
    policy = bases("llama") if job == "sft" or kind == "v2" else trained("sft", "llama", kind)[0]
    whole, _ = train(job, spec(job, kind), policy, work=tmp_path, checkpoint_every=2)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = train(job, spec(job, kind), policy, work=tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert payload(resumed) == payload(whole)


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_a_checkpoint_without_the_network_is_passed_over(train, bases, tmp_path, how):
    train("sft", spec("sft", "mlp", max_steps=2), bases("llama"), work=tmp_path, checkpoint_every=1)
    root = tmp_path / "checkpoints"
    assert newest_complete(root, 1) == root / "checkpoint-2"
    path = root / "checkpoint-2" / TRAINED
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-20])
    assert newest_complete(root, 1) == root / "checkpoint-1"


def test_a_checkpoint_of_other_weights_is_refused(train, bases, tmp_path):
    train("sft", spec("sft", "mlp", max_steps=2), bases("llama"), work=tmp_path, checkpoint_every=1)
    with pytest.raises(AlignError, match=f"{TRAINED} holds other weights than are trained"):
        train("sft", spec("sft", "prompt"), bases("llama"), work=tmp_path, checkpoint_every=1)


@pytest.mark.parametrize("kind", ["prompt", "lstm"])
def test_gradient_checkpointing_changes_nothing(shop, train, trained, kind):
    out, _ = train("sft", spec("sft", kind), shop.policy, gradient_checkpointing=True)
    assert (logits(loaded(shop, out).model) - logits(trained("sft", "llama", kind)[2])).abs().max() < 1e-5


def alone(model, prompt, new_tokens, stops):
    """Greedy tokens without cache, padding or batch: the whole text again for each token."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def prompts_of(encoder, lengths):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, len(encoder.tokenizer), (n,), generator=draw).tolist() for n in lengths]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["llama", "gpt2", "opt", "mixtral"])
def test_answers_and_scores_of_a_padded_batch_are_those_of_each_text_alone(shop, bases, tmp_path, model, kind):
    start = wrapped(shop, bases(model), KINDS[kind] | ({"init": "random"} if kind == "prompt" else {}))
    start.model.eval()
    with torch.no_grad():  # as it is made, the tiny model looks at its last token alone
        for name, weight in start.model.base_model.named_parameters():
            if weight.dim() > 1 and "embed" not in name and "wte" not in name:
                weight.mul_(10)
    encoder = Encoder(start.tokenizer)
    prompts = prompts_of(encoder, [3, 11, 7, 20])
    free = [alone(start.model, prompt, 8, stops=()) for prompt in prompts]
    with start.model.disable_adapter():
        assert free != [alone(start.model, prompt, 8, stops=()) for prompt in prompts]
    encoder.stops = {free[1][4]}
    wanted = [alone(start.model, prompt, 8, encoder.stops) for prompt in prompts]
    assert generate.decode(start.model, prompts, encoder, 8, generate._likeliest) == wanted
    run = Run(tmp_path, shop.models, Execution(device="cpu"))
    texts = [score.Text("m", {}, ids, [False] * 2 + [True] * (len(ids) - 2), mean=False) for ids in prompts]
    for (total, count), ids in zip(score.log_probabilities(start, encoder, texts, run), prompts, strict=True):
        with torch.no_grad():
            logp = start.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -len(ids) :].double().log_softmax(-1)
        assert count == len(ids) - 2
        assert total == pytest.approx(sum(float(logp[t - 1, ids[t]]) for t in range(2, len(ids))), abs=1e-4)


def test_the_vectors_count_when_a_prompt_must_have_room(shop, trained, tmp_path):
    out = trained("sft", "llama", "prompt")[0]
    start = loaded(shop, out)
    longest = len(Encoder(start.tokenizer).prompt(read_rows(shop.prompts, "prompts")[0]["prompt"]))
    run = Run(tmp_path, shop.models, Execution(device="cpu"))
    inputs = {"policy": out, "prompts": shop.prompts}
    with pytest.raises(DataError, match=rf"prompt \d+: {longest + P} tokens and {256 - longest} new ones exceed"):
        generate.run(AnswersSpec(max_new_tokens=256 - longest), inputs, tmp_path, run)


def test_a_text_that_fits_only_without_the_vectors_is_refused(shop, train):
    with pytest.raises(SpecError, match=r"the 240 of the soft prompt exceed the model's 256 positions; lower max_length to 16"):
        train("sft", spec("sft", "prompt", method={"name": "prompt_tuning", "length": 240}), shop.policy)


@pytest.mark.parametrize("kind", KINDS)
def test_a_soft_prompt_is_not_merged_and_the_error_says_why_and_what_to_do(train, trained, kind):
    reason = r"cannot be merged: its .*; leave merge out, .* or use one of full, lora"
    with pytest.raises(SpecError, match=f"{KINDS[kind]['name']} {reason}"):
        train("merge", MergeSpec(), trained("sft", "llama", kind)[0])


def test_another_shape_or_method_cannot_go_on_from_a_soft_prompt(train, trained):
    for other in ({"name": "prompt_tuning", "length": 7}, {"name": "lora"}):
        with pytest.raises(SpecError, match="trained with prompt_tuning, which cannot be merged"):
            train("dpo", spec("dpo", "prompt", method=other), trained("sft", "llama", "prompt")[0])


def test_a_prompt_on_a_merged_lora_policy_rests_beside_it(shop, train, sft_policies):
    out, metrics = train("dpo", spec("dpo", "v2", max_steps=2), sft_policies("lora"))
    assert (metrics["start"], read_record(out).adapters) == ("fresh", ["0-sft", "1-dpo"])
    again = loaded(shop, out).model
    with again.disable_adapter():
        assert (logits(again) - logits(loaded(shop, sft_policies("lora")).model)).abs().max() < 1e-4
    with pytest.raises(SpecError, match="p_tuning_v2 cannot be merged"):
        train("merge", MergeSpec(), out)
