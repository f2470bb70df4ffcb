"""Policy, value model, reference and reward model on one base: each answers as itself, and only what is trained moves."""

import practising
import pytest
import torch
from practising import MODEL, spec
from safetensors.torch import load_file

from tasks.core.errors import DataError
from tasks.measure import RewardsSpec
from tasks.tables import read_rows, write_answers
from tasks.training import ppo, rewards
from tasks.training.adapters import start
from tasks.training.models import load
from tasks.training.practice import clearance_of
from tasks.training.roles import Clearance, OwnReward, Roles, Said, SharedReward, reward_model

pytestmark = [pytest.mark.filterwarnings(warning) for warning in practising.WARNINGS]
TEXTS = ("yes cat", "no dog says what", "blue", "maybe")


@pytest.fixture
def stage(studio):
    """`stage(sft, method, reward)`: roles on a base, the reward model, and the start."""

    def get(sft="full", method="lora", reward=None, log=None, checkpointing=False):
        run = studio.run(log)
        begin = start(studio.sft(sft), spec(method), run)
        roles = Roles(begin, checkpointing=checkpointing)
        judge = reward_model(roles, begin, reward, run) if reward else None
        roles.add_value(judge if isinstance(judge, SharedReward) else None, Clearance(0.25, 0.5), 2.0)
        return roles, judge, begin

    return get


def said(roles, count=3):
    prompts = [roles.encoder.prompt([{"role": "user", "content": text}]) for text in TEXTS[:count]]
    answers = [[*roles.encoder.ids(text), *sorted(roles.encoder.stops)][: 4 + i] for i, text in enumerate(TEXTS[:count])]
    return Said.of(prompts, answers, roles.encoder.pad, roles.device)


def logps(roles, batch):
    with torch.no_grad():
        return roles.log_probs(batch, temperature=1.0)[0]


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "lora_plus", "qlora"])
@pytest.mark.parametrize("continues", [True, False])
def test_reference_and_policy_start_as_the_sft_policy_and_the_reference_stays(stage, studio, method, continues):
    if method == "qlora" and not continues:
        pytest.skip("a 4-bit base takes no merge, so QLoRA goes on from QLoRA")
    sft = method if continues else "full"
    roles, _, begin = stage(sft, method)
    assert begin.how == ("continue" if continues else "fresh")
    batch = said(roles)
    with roles.policy():
        before = logps(roles, batch)
    with roles.reference():
        assert torch.equal(logps(roles, batch), before)
    plain = load(studio.sft(sft), studio.run()).model
    wanted = torch.log_softmax(
        plain(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.position_BT).logits, -1
    )
    width = batch.answer_BR.shape[1]
    token = wanted[:, -width - 1 : -1].gather(2, batch.ids_BT[:, -width:, None])[..., 0] * batch.answer_BR
    torch.testing.assert_close(before, token, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for p in roles.trained()[0]:
            p.add_(0.1)
    with roles.reference():
        assert torch.equal(logps(roles, batch), before)
    with roles.policy():
        assert not torch.allclose(logps(roles, batch), before, atol=1e-3)


def test_whatever_role_was_taken_exactly_what_is_trained_requires_gradients(stage, studio):
    roles, _, _ = stage("lora", "lora", studio.reward_model("lora"))

    def wanting():
        return {name for name, p in roles.named_parameters() if p.requires_grad}

    everything = wanting()
    assert {".default.", ".value."} == {f".{name.split('.')[-2]}." for name in everything if name.startswith("model.")}
    assert {name for name in everything if not name.startswith("model.")} == {"value_head.weight", "value_head.bias"}
    for role in (roles.reference, roles.reward, roles.value, roles.policy, roles.reference):
        with role():
            assert wanting() == everything
        assert wanting() == everything


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_backward_pass_in_a_role_reaches_its_weights_and_no_others(stage, checkpointing):
    roles, _, _ = stage("full", checkpointing=checkpointing)
    batch = said(roles)
    policy, value = roles.trained()
    with roles.policy(learns=True):
        roles.log_probs(batch, temperature=1.0)[0].sum().backward()
    assert sum(p.grad is not None for p in policy) == len(policy)
    assert all(p.grad is None for p in value)
    roles.zero_grad()
    torch.nn.init.normal_(roles.value_head.weight)
    with roles.value(learns=True):
        roles.values(batch).sum().backward()
    assert all(p.grad is None for p in policy)
    assert sum(p.grad is not None for p in value) == len(value)


@pytest.mark.parametrize(("sft", "method"), [("lora", "lora"), ("full", "lora"), ("qlora", "qlora")])
def test_on_the_shared_base_it_scores_as_the_stored_reward_model_does(stage, studio, tmp_path, sft, method):
    lines = []
    stored = studio.reward_model(sft, method)
    _, judge, _ = stage(sft, method, stored, log=lines.append)
    assert isinstance(judge, SharedReward)
    assert "reward model: an adapter on the policy's base" in lines
    prompts = read_rows(studio.shop.prompts / "prompts.parquet")
    said = zip(prompts[: len(TEXTS)], TEXTS, strict=True)
    answers = [{**row, "conversation": "c", "answer": text, "tokens": 1, "finished": True} for row, text in said]
    write_answers(tmp_path, answers)
    rewards.run(RewardsSpec(max_length=128), {"reward_model": stored, "answers_x": tmp_path}, tmp_path, studio.run())
    wanted = {row["item"]: row["value"] for row in rewards_of(tmp_path)}
    found = judge.scores([(row["prompt"], row["answer"]) for row in answers], 2)
    assert found == pytest.approx([wanted[row["id"]] for row in answers], abs=1e-5)
    assert len({round(score, 4) for score in found}) == len(TEXTS)


def rewards_of(folder):
    import pyarrow.parquet as pq

    return pq.read_table(folder / "scores.parquet").to_pylist()


@pytest.mark.parametrize(
    ("sft", "method", "below", "by", "why"),
    [
        ("full", "lora", "full", "full", "it is a whole model"),
        ("full", "lora", "full", "ia3", "its method ia3 and the policy's lora cannot lie on one base"),
        ("lora", "dora", "lora", "lora", "its stack of merged adapters is not that of the policy"),
        ("full", "lora", "lora", "lora", "its base is not that of the policy"),
        ("qlora", "qlora", "lora", "lora", "its precision is not that of the policy"),
    ],
)
def test_a_reward_model_on_another_base_is_loaded_beside_it_and_the_log_says_why(stage, studio, sft, method, below, by, why):
    lines = []
    stored = studio.reward_model(below, by)
    _, judge, _ = stage(sft, method, stored, log=lines.append)
    assert isinstance(judge, OwnReward)
    assert f"reward model: loaded beside the policy's base, because {why}" in lines
    prompt = [{"role": "user", "content": "what is the sky"}]
    loaded = load(stored, studio.run(), task="reward")
    ids = [token for piece in judge.encoder.pieces([*prompt, {"role": "assistant", "content": "blue"}]) for token in piece.ids]
    wanted = float(loaded.model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits)
    assert judge.scores([(prompt, "blue")], 1) == pytest.approx([wanted], abs=1e-5)


def test_the_value_model_starts_as_the_reward_model_in_units_of_the_weighted_normalised_score(stage, studio):
    roles, judge, _ = stage("full", "lora", studio.reward_model("full"))
    prompt = [{"role": "user", "content": "what is the sky"}]
    whole = [token for piece in judge.encoder.pieces([*prompt, {"role": "assistant", "content": "blue"}]) for token in piece.ids]
    # the value before the token after the scored text is read where the score is: a token more, whichever
    batch = Said.of([whole], [[5]], roles.encoder.pad, roles.device)
    with roles.value(), torch.no_grad():
        found = float(roles.values(batch)[0, 0])
    (score,) = judge.scores([(prompt, "blue")], 1)
    assert found == pytest.approx(2.0 * (score - 0.25) / 0.5, abs=1e-4)


def test_after_training_the_policy_adapter_the_value_adapter_and_its_head_have_moved_and_nothing_else(studio, monkeypatch):
    seen = {}

    def fit(trainer, begin, *rest, **more):
        seen["roles"] = trainer.model
        seen["before"] = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        return real(trainer, begin, *rest, **more)

    real = ppo.fit
    monkeypatch.setattr(ppo, "fit", fit)
    out, _ = studio.practise(spec(**MODEL), studio.sft("lora"), reward=studio.reward_model("lora"))
    moved, still = set(), set()
    for name, p in seen["roles"].named_parameters():
        (still if torch.equal(p, seen["before"][name]) else moved).add(name)
    assert moved == {name for name in seen["before"] if ".default." in name or ".value." in name or name.startswith("value_head")}
    assert any(".reference." in name for name in still)
    assert any(".reward." in name for name in still)
    written = load_file(out / "adapters" / "0-sft" / "adapter_model.safetensors")
    live = {name: p for name, p in seen["roles"].model.named_parameters() if ".default." in name}
    assert {name.replace(".default.", ".") for name in live} == written.keys()
    assert all(torch.equal(p, written[name.replace(".default.", ".")]) for name, p in live.items())


def test_a_clearance_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"clearance\.json: not a clearance"):
        clearance_of(tmp_path)
