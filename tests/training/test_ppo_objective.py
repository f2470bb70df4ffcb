"""The mathematics of PPO: numbers worked out by hand, and a slow implementation that shares nothing with the fast one."""

import math
import random

import pytest
import torch
from torch import tensor

from tasks.training.objective import (
    advantages,
    explained_variance,
    next_coefficient,
    of_tokens,
    policy_loss,
    token_rewards,
    value_loss,
    whitened,
)

MASK = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])  # answers of three tokens and of one


def close(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found), tensor(wanted), atol=1e-6, rtol=1e-6)


# -- by hand


def test_the_score_is_given_at_the_last_token_and_the_pull_at_every_one():
    kl = tensor([[0.5, -1.0, 2.0], [0.25, 9.0, 9.0]])
    found = token_rewards(tensor([3.0, -1.0]), kl, MASK, coefficient=0.1)
    close(found, [[-0.05, 0.1, 3.0 - 0.2], [-1.0 - 0.025, 0.0, 0.0]])


def test_advantages_worked_out_by_hand():
    # delta_3 = 1 - 0.5 = 0.5; delta_2 = 0 + 0.9 * 0.5 - 0.4 = 0.05; delta_1 = 0 + 0.9 * 0.4 - 0.2 = 0.16; gamma lam = 0.45
    # A_3 = 0.5; A_2 = 0.05 + 0.45 * 0.5 = 0.275; A_1 = 0.16 + 0.45 * 0.275 = 0.28375; returns: A + V
    reward = tensor([[0.0, 0.0, 1.0], [2.0, 7.0, 7.0]])
    value = tensor([[0.2, 0.4, 0.5], [1.5, 7.0, 7.0]])
    found, returns = advantages(reward, value, MASK, gamma=0.9, lam=0.5)
    close(found, [[0.28375, 0.275, 0.5], [0.5, 0.0, 0.0]])
    close(returns, [[0.48375, 0.675, 1.0], [2.0, 0.0, 0.0]])


def test_with_lambda_one_the_return_is_the_discounted_sum_and_with_zero_it_is_one_step():
    reward, value = tensor([[1.0, 2.0, 4.0]]), tensor([[10.0, 20.0, 30.0]])
    mask = torch.ones(1, 3)
    close(advantages(reward, value, mask, gamma=0.5, lam=1.0)[1], [[1 + 1 + 1.0, 2 + 2.0, 4.0]])
    close(advantages(reward, value, mask, gamma=0.5, lam=0.0)[1], [[1 + 10.0, 2 + 15.0, 4.0]])


def test_whitening_looks_at_the_mask_alone():
    found = whitened(tensor([[1.0, 3.0, 5.0], [7.0, 1e6, -1e6]]), MASK)
    root = math.sqrt(5)  # mean 4, squares 9 1 1 9, so variance 5
    close(found, [[-3 / root, -1 / root, 1 / root], [3 / root, 0.0, 0.0]])


def test_the_policys_loss_is_clipped_where_that_is_worse_and_nowhere_else():
    ratio = tensor([[1.5, 1.5, 0.5], [0.5, 9.0, 9.0]])
    advantage = tensor([[2.0, -2.0, 2.0], [-2.0, 9.0, 9.0]])
    # gain 1.5 held at 1.2: -2.4; loss 1.5 not held: 3; gain at 0.5 not held: -1; loss at 0.5 held at 0.8: 1.6
    found = policy_loss(ratio.log(), torch.zeros(2, 3), advantage, MASK, clip=0.2, tokens=4)
    close(found.loss, (-2.4 + 3.0 - 1.0 + 1.6) / 4)
    close(found.clipped, 4.0)
    close(found.kl, 2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5)))
    close(found.off, 0.5)  # what lies outside the mask is not read


def test_a_clipped_gain_teaches_nothing_and_a_clipped_loss_does():
    logp = tensor([[math.log(1.5), math.log(1.5)]], requires_grad=True)
    policy_loss(logp, torch.zeros(1, 2), tensor([[2.0, -2.0]]), torch.ones(1, 2), clip=0.2, tokens=2).loss.backward()
    close(logp.grad, [[0.0, 1.5]])  # 2 * 1.5 / 2


def test_the_values_loss_takes_the_worse_of_value_and_held_value():
    value, before, wanted = tensor([[1.0, 0.1]]), tensor([[0.0, 0.0]]), tensor([[1.0, 1.0]])
    # value 1 is held at 0.2: 0.8^2 against 0; value 0.1 is not held: 0.9^2
    close(value_loss(value, before, wanted, torch.ones(1, 2), clip=0.2, tokens=2), 0.5 * (0.64 + 0.81) / 2)


@pytest.mark.parametrize(
    ("kl", "wanted"),
    [(5.0, 0.1), (5.5, 0.11), (50.0, 0.12), (0.0, 0.08), (4.5, 0.09)],  # target 5: no error, a tenth, clipped at a fifth
)
def test_the_pull_follows_its_target_by_a_fifth_per_horizon_at_most(kl, wanted):
    assert next_coefficient(0.1, kl, target=5.0, horizon=32, answers=32) == pytest.approx(wanted)
    half = next_coefficient(0.1, kl, target=5.0, horizon=64, answers=32)
    assert next_coefficient(half, kl, target=5.0, horizon=64, answers=32) == pytest.approx(wanted)  # however it is cut


def test_without_a_target_the_pull_stays():
    assert next_coefficient(0.1, 1e9, target=None, horizon=1, answers=1000) == 0.1


def test_explained_variance_of_right_constant_and_opposite_values():
    returns = tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]])
    assert explained_variance(returns, returns, MASK) == 1.0
    assert explained_variance(torch.full((2, 3), 7.0), returns, MASK) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, MASK) == pytest.approx(-3.0)  # errors vary twice as widely
    assert explained_variance(returns, torch.ones(2, 3), MASK) == 0.0


# -- slowly, token by token, in Python's own numbers


def slow(score, logp, reference, value, new, now, *, beta, gamma, lam, clip, value_clip):
    """Losses of answers given as lists of numbers per token: every sum written out as in the papers."""
    tokens = [(b, t) for b, row in enumerate(logp) for t in range(len(row))]
    reward = {(b, t): -beta * (logp[b][t] - reference[b][t]) + (score[b] if t == len(logp[b]) - 1 else 0) for b, t in tokens}
    advantage = {}
    for b, t in tokens:  # A_t = sum over l of (gamma lam)^l delta_{t+l}
        advantage[b, t] = sum(
            (gamma * lam) ** (u - t) * (reward[b, u] + (gamma * value[b][u + 1] if u + 1 < len(logp[b]) else 0.0) - value[b][u])
            for u in range(t, len(logp[b]))
        )
    mean = sum(advantage.values()) / len(tokens)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantage.values()) / len(tokens) + 1e-8)
    policy = worth = 0.0
    for b, t in tokens:
        a, ratio = (advantage[b, t] - mean) / deviation, math.exp(new[b][t] - logp[b][t])
        policy -= min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
        wanted, low, high = advantage[b, t] + value[b][t], value[b][t] - value_clip, value[b][t] + value_clip
        worth += 0.5 * max((now[b][t] - wanted) ** 2, (min(max(now[b][t], low), high) - wanted) ** 2)
    return policy / len(tokens), worth / len(tokens)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("side", ["left", "right"])
def test_all_of_it_together_equals_the_slow_implementation(seed, side):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 6) for _ in range(draw.randint(1, 5))] + [4]
    rows = {name: [[draw.gauss(0, 1) for _ in range(n)] for n in lengths] for name in ("logp", "reference", "value", "now")}
    rows["new"] = [[x + draw.gauss(0, 0.3) for x in row] for row in rows["logp"]]
    score = [draw.gauss(0, 2) for _ in lengths]
    how = {"gamma": draw.uniform(0.8, 1), "lam": draw.uniform(0.5, 1)}
    beta, clip, value_clip = draw.uniform(0, 0.5), draw.uniform(0.1, 0.4), draw.uniform(0.1, 0.4)

    def wide(name):
        parts = [tensor(row, dtype=torch.float64) for row in rows[name]]
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_side=side, padding_value=3.0)

    parts = [torch.ones(n, dtype=torch.float64) for n in lengths]
    mask = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_side=side)
    scores = tensor(score, dtype=torch.float64)
    reward = token_rewards(scores, wide("logp") - wide("reference"), mask, coefficient=beta)
    found, returns = advantages(reward, wide("value"), mask, **how)
    tokens = int(mask.sum())
    policy = policy_loss(wide("new"), wide("logp"), whitened(found, mask), mask, clip=clip, tokens=tokens)
    worth = value_loss(wide("now"), wide("value"), returns, mask, clip=value_clip, tokens=tokens)
    wanted = slow(score, **rows, beta=beta, **how, clip=clip, value_clip=value_clip)
    assert (float(policy.loss), float(worth)) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("tokens", [5, 700])
def test_log_probabilities_of_tokens_and_their_gradient_are_those_of_log_softmax(tokens):
    torch.manual_seed(tokens)
    weight, hidden = torch.randn(11, 4, dtype=torch.float64), torch.randn(tokens, 4, dtype=torch.float64)
    token, by = torch.randint(11, (tokens,)), torch.randn(tokens, dtype=torch.float64)
    grads, found = [], []
    for how in ("lean", "plain", "with entropy"):
        given = hidden.clone().requires_grad_()
        logits = given @ weight.T
        plain = logits.log_softmax(1).gather(1, token[:, None])[:, 0]
        logp, entropy = (plain, None) if how == "plain" else of_tokens(logits.clone(), token, entropy=how != "lean")
        (logp * by).sum().backward()
        grads.append(given.grad)
        found.append(logp.detach())
    for part in (0, 2):
        torch.testing.assert_close(found[part], found[1])
        torch.testing.assert_close(grads[part], grads[1])
    share = (hidden @ weight.T).softmax(1)
    torch.testing.assert_close(entropy.detach(), -(share * share.log()).sum(1))


def test_parts_of_a_minibatch_add_up_to_the_whole():
    torch.manual_seed(0)
    new, old, advantage = torch.randn(3, 2, 3)
    whole = policy_loss(new, old, advantage, MASK, clip=0.2, tokens=4)
    parts = [
        policy_loss(new[i : i + 1], old[i : i + 1], advantage[i : i + 1], MASK[i : i + 1], clip=0.2, tokens=4) for i in (0, 1)
    ]
    close(sum(part.loss for part in parts), float(whole.loss))
