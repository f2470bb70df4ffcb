"""Answers that a policy practises on: drawn by seed, iteration, prompt and sample alone, and kept whole on disk."""

import numpy as np
import practising
import pytest
import torch
from practising import spec

from tasks.core.errors import DataError
from tasks.training.adapters import start
from tasks.training.roles import Roles, Said
from tasks.training.rollout import (
    Ask,
    Rollout,
    TransformersEngine,
    asked_order,
    asks,
    forget_rollouts,
    rollout_path,
    room_for,
    sampled,
)

pytestmark = [pytest.mark.filterwarnings(warning) for warning in practising.WARNINGS]


@pytest.fixture(scope="module")
def roles(studio):
    return Roles(start(studio.sft(), spec(), studio.run()), checkpointing=False)


def speak(roles, asked, rows=8, **more):
    how = {"new_tokens": 12, "silent": 0, "temperature": 1.0, "seed": 3, **more}
    return TransformersEngine(roles.model, roles.encoder, rows=rows, **how).answers(asked, lambda done, of: None)


def wanted(roles, count=9):
    texts = ["what is the sky " * (1 + i % 4) for i in range(count)]
    return [Ask(roles.encoder.prompt([{"role": "user", "content": text}]), str(i)) for i, text in enumerate(texts)]


def test_answers_do_not_depend_on_the_batch_and_end_at_the_stop_token(roles):
    asked = wanted(roles)
    together, alone, some = speak(roles, asked, rows=9), speak(roles, asked, rows=1), speak(roles, asked[3:6])
    assert together == alone
    assert together[3:6] == some
    assert all(1 <= len(answer) <= 12 for answer in together)
    assert any(len(answer) < 12 for answer in together)
    for answer in together:
        assert not roles.encoder.stops & set(answer[:-1])
        assert len(answer) == 12 or answer[-1] in roles.encoder.stops


def test_another_seed_or_name_draws_another_answer(roles):
    asked = wanted(roles)
    assert speak(roles, asked) == speak(roles, asked)
    assert speak(roles, asked, seed=4) != speak(roles, asked)
    assert speak(roles, [ask._replace(name="x" + ask.name) for ask in asked]) != speak(roles, asked)


def test_no_answer_is_shorter_than_the_least_and_its_log_probabilities_know_that(roles):
    asked = wanted(roles)
    answers = speak(roles, asked, silent=5)
    assert min(map(len, answers)) >= 6  # five tokens, then perhaps the stop token
    assert any(len(answer) == 6 for answer in answers)
    said = Said.of([ask.prompt for ask in asked], answers, roles.encoder.pad, roles.device)
    with torch.no_grad():
        free, held = (roles.log_probs(said, temperature=0.7, silent=n, entropy=True)[0] for n in (0, 5))
        plain = roles.model(input_ids=said.ids_BT, attention_mask=said.mask_BT, position_ids=said.position_BT).logits / 0.7
    width = said.answer_BR.shape[1]
    share = plain[:, -width - 1 : -1].clone()
    share[..., sorted(roles.encoder.stops)] = share[..., sorted(roles.encoder.stops)].masked_fill(
        (said.place_BR < 5)[..., None], -torch.inf
    )
    token = share.log_softmax(-1).gather(2, said.ids_BT[:, -width:, None])[..., 0]
    there = said.answer_BR.bool()
    torch.testing.assert_close(held[there], token[there], atol=1e-4, rtol=1e-4)
    assert (held >= free - 1e-5).all()  # what the stop tokens had is shared by the others
    assert not torch.allclose(held, free)


def test_tokens_are_drawn_in_proportion_to_their_probabilities():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    numbers = (np.arange(1000) + 0.5) / 1000
    found = sampled(logits.repeat(1000, 1), numbers, temperature=0.5)
    wanted = torch.softmax(logits[0].double() / 0.5, 0)
    assert torch.bincount(found, minlength=4).tolist() == pytest.approx((1000 * wanted).tolist(), abs=1)
    assert found.tolist() == sorted(found.tolist())
    assert sampled(torch.zeros(1, 4), np.array([np.nextafter(1.0, 0)]), temperature=1.0).tolist() == [3]


def test_rows_of_a_batch_end_together_and_masks_come_from_lengths():
    # 9 pads, and is also a true token here: pad == eos is what SmolLM has
    said = Said.of([[1, 9, 2], [3]], [[9], [4, 9]], 9, torch.device("cpu"))
    assert said.ids_BT.tolist() == [[1, 9, 2, 9], [9, 3, 4, 9]]
    assert said.mask_BT.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert said.answer_BR.tolist() == [[0, 1], [1, 1]]
    assert said.place_BR.tolist() == [[-1, 0], [0, 1]]
    assert said.position_BT.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]


def test_log_probabilities_do_not_depend_on_the_padding(roles):
    asked = wanted(roles, 4)
    answers = speak(roles, asked)
    with torch.no_grad():
        many = Said.of([ask.prompt for ask in asked], answers, roles.encoder.pad, roles.device)
        together = roles.log_probs(many, temperature=1.0)[0]
        for i, (ask, answer) in enumerate(zip(asked, answers, strict=True)):
            one = Said.of([ask.prompt], [answer], roles.encoder.pad, roles.device)
            alone = roles.log_probs(one, temperature=1.0)[0][0]
            torch.testing.assert_close(together[i, -len(answer) :], alone, atol=1e-5, rtol=1e-5)


def test_each_pass_asks_every_prompt_once_and_a_prompt_asked_twice_is_sampled_twice():
    order = asked_order(6, iterations=3, batch=4, seed=1)
    stream = [number for numbers in order for number in numbers]
    assert sorted(stream[:6]) == sorted(stream[6:12]) == list(range(6))
    assert stream[:6] != stream[6:12]
    assert order == asked_order(6, iterations=5, batch=4, seed=1)[:3]
    rows = [{"id": name, "prompt_ids": [i]} for i, name in enumerate("ab")]
    assert asks(rows, [1, 0, 1], 7) == [Ask([1], "7\nb\n0"), Ask([0], "7\na\n0"), Ask([1], "7\nb\n1")]


def test_prompts_without_room_for_an_answer_are_left_out_and_counted(roles):
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": "cat " * n}]} for i, n in enumerate((1, 40))]
    found = room_for(roles.encoder, rows, max_length=40, new_tokens=12)
    assert [row["id"] for row in found.rows] == ["0"]
    assert found.dropped == {"prompts without room for an answer in max_length": 1}
    with pytest.raises(DataError, match=r"prompts: 1 of 2 rows would be left out .*more than dropped_budget 0\.01"):
        found.check(0.01, "prompts")


def some_rollout(**more):
    fields = {
        "prompts": [4, 1], "answers": [[7, 8, 2], [2]], "finished_N": torch.tensor([True, True]),
        "score_N": torch.tensor([0.1, 1 / 3], dtype=torch.float64), "entry_EN": torch.rand(2, 2, dtype=torch.float64),
        "logp_S": -torch.rand(4), "reference_S": -torch.rand(4), "value_S": torch.rand(4), "entropy_S": torch.rand(4),
        "coefficient": 0.1 + 0.2, "heldout": None, **more,
    }  # fmt: skip
    return Rollout(**fields)


@pytest.mark.parametrize("heldout", [None, -1 / 3])
def test_a_rollout_is_read_back_bit_for_bit(tmp_path, heldout):
    one = some_rollout(heldout=heldout)
    one.write(rollout_path(tmp_path, 3))
    two = Rollout.read(tmp_path / "rollouts" / "000003.safetensors")
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["000003.safetensors"]
    for name, value in vars(one).items():
        found = vars(two)[name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    assert two.kl_N.tolist() == pytest.approx(
        [float((one.logp_S - one.reference_S)[:3].sum()), float((one.logp_S - one.reference_S)[3])]
    )


def test_rollouts_of_other_iterations_and_torn_ones_are_forgotten(tmp_path):
    for number in range(4):
        some_rollout().write(rollout_path(tmp_path, number))
    (tmp_path / "rollouts" / ".000004.safetensors.77").write_bytes(b"torn")
    forget_rollouts(tmp_path, range(1, 3))
    assert sorted(path.name for path in (tmp_path / "rollouts").iterdir()) == ["000001.safetensors", "000002.safetensors"]
