# pyright: basic
"""The mathematics of PPO on tensors: no models, no I/O.  Shapes: B answers, T tokens.  Units: nats, and units of reward.

`mask_BT` is 1 on the tokens of an answer, which lie side by side in their row, wherever in it; what lies elsewhere is never read.
Sums over a mask are divided by a number that is given, so that the parts of a minibatch add up to the whole.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

_ROWS = 256
"""tokens whose distribution over the vocabulary is normalised at once"""


class PolicyLoss(NamedTuple):
    """Of one part of a minibatch; the sums are over its tokens."""

    loss: Tensor
    """its share of the minibatch's mean; scalar"""
    clipped: Tensor
    """tokens whose ratio lies beyond the clip; scalar"""
    kl: Tensor
    """estimated divergence from the sampling policy, summed; scalar"""
    off: Tensor
    """largest distance of a ratio from 1; scalar"""


def token_rewards(score_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, coefficient: float) -> Tensor:
    """The reward of each token: the pull to the reference, and at an answer's last token its score (arXiv:1909.08593, eq. 2).

    score_B: (B,).  kl_BT: log-ratio to the reference, the k1 estimate; (B, T).  Returns (B, T), 0 outside the mask.
    """
    following_BT = torch.nn.functional.pad(mask_BT[:, 1:], (0, 1))
    last_BT = mask_BT * (1 - following_BT)
    return (score_B[:, None] * last_BT - coefficient * kl_BT) * mask_BT


def advantages(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, (B, T) each (arXiv:1506.02438, eq. 16).  After an answer's end all is worth 0.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  the return that the value learns is A_t + V_t.
    """
    found_BT = torch.zeros_like(reward_BT)
    value_B, ahead_B = torch.zeros_like(reward_BT[:, 0]), torch.zeros_like(reward_BT[:, 0])
    for t in range(reward_BT.shape[1] - 1, -1, -1):
        delta_B = reward_BT[:, t] + gamma * value_B - value_BT[:, t]
        ahead_B = (delta_B + gamma * lam * ahead_B) * mask_BT[:, t]
        value_B = value_BT[:, t] * mask_BT[:, t]
        found_BT[:, t] = ahead_B
    return found_BT, (found_BT + value_BT) * mask_BT


def whitened(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Shifted and scaled to mean 0 and (biased) deviation 1 over the mask; 0 outside.  (B, T)."""
    count = mask_BT.sum()
    mean = (value_BT * mask_BT).sum() / count
    variance = ((value_BT - mean).square() * mask_BT).sum() / count
    return (value_BT - mean) * torch.rsqrt(variance + 1e-8) * mask_BT


def policy_loss(
    logp_BT: Tensor, sampled_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, clip: float, tokens: float
) -> PolicyLoss:
    """The clipped surrogate, negated (arXiv:1707.06347, eq. 7).

    logp_BT: of the policy now; sampled_BT: of the policy that sampled; (B, T).  tokens: of the whole minibatch.  The divergence
    is estimated by (ratio - 1) - log ratio, which is never negative (Schulman, "Approximating KL divergence", 2020, k3).
    """
    change_BT = (logp_BT - sampled_BT) * mask_BT
    ratio_BT = change_BT.exp()
    worse_BT = torch.maximum(-advantage_BT * ratio_BT, -advantage_BT * ratio_BT.clamp(1 - clip, 1 + clip))
    with torch.no_grad():
        clipped = (((ratio_BT - 1).abs() > clip) * mask_BT).sum()
        kl = ((ratio_BT - 1 - change_BT) * mask_BT).sum()
        off = (ratio_BT - 1).abs().max()
    return PolicyLoss((worse_BT * mask_BT).sum() / tokens, clipped, kl, off)


def value_loss(value_BT: Tensor, before_BT: Tensor, return_BT: Tensor, mask_BT: Tensor, *, clip: float, tokens: float) -> Tensor:
    """Half the squared error, of the value or of the value held near what it was, whichever is larger; scalar.

    before_BT: values when the answers were sampled; (B, T).  The clip is that of PPO's first implementation (openai/baselines).
    """
    near_BT = torch.clamp(value_BT, before_BT - clip, before_BT + clip)
    worse_BT = torch.maximum((value_BT - return_BT).square(), (near_BT - return_BT).square())
    return 0.5 * (worse_BT * mask_BT).sum() / tokens


def next_coefficient(coefficient: float, kl: float, *, target: float | None, horizon: int, answers: int) -> float:
    """The pull after `answers` answers of mean divergence `kl`, nats per answer (arXiv:1909.08593, section 2.2).

    e = clip(kl / target - 1, -0.2, 0.2);  coefficient <- coefficient (1 + e)^(answers / horizon).  The paper's 1 + K e per batch
    is the first order of this, which cannot turn negative and does not depend on how answers are cut into batches.
    """
    if target is None:
        return coefficient
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error) ** (answers / horizon)


def explained_variance(value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor) -> float:
    """1 less the share of the returns' variance that the values leave; 0 where returns do not vary."""
    there = mask_BT.bool()
    wanted_N, error_N = return_BT[there].double(), (return_BT - value_BT)[there].double()
    spread = wanted_N.var(unbiased=False)
    return float(1 - error_N.var(unbiased=False) / spread) if spread > 1e-12 else 0.0


def of_tokens(logits_NV: Tensor, token_N: Tensor, *, entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens, and entropies of the distributions they come from if asked for (else empty); (N,) each.

    Where only the former have a gradient, it is written over the logits, which nobody may look at any more: one tensor over the
    vocabulary then, instead of three.
    """
    if not entropy:
        return _Chosen.apply(logits_NV, token_N), token_N.new_empty(0)  # pyright: ignore[reportReturnType]
    parts = [_spread(part_NV) for part_NV in logits_NV.split(_ROWS)]
    norm_N, spread_N = (torch.cat(of_all) for of_all in zip(*parts, strict=True))
    return logits_NV.gather(1, token_N[:, None])[:, 0] - norm_N, spread_N


def _spread(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the summed exponentials, and entropy."""
    norm_N = logits_NV.logsumexp(dim=1)
    return norm_N, norm_N - (logits_NV.softmax(dim=1) * logits_NV).sum(dim=1)


class _Chosen(torch.autograd.Function):
    """log softmax(logits)[token], whose gradient takes the place of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, token_N: Tensor) -> Tensor:  # noqa: ANN401  torch's own
        norm_N = torch.cat([part_NV.logsumexp(dim=1) for part_NV in logits_NV.split(_ROWS)])
        ctx.save_for_backward(logits_NV, token_N, norm_N)
        return logits_NV.gather(1, token_N[:, None])[:, 0] - norm_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        logits_NV, token_N, norm_N = ctx.saved_tensors
        for part_NV, of_N, by_N in zip(*(whole.split(_ROWS) for whole in (logits_NV, norm_N, gradient_N)), strict=True):
            part_NV.sub_(of_N[:, None]).exp_().mul_(-by_N[:, None])
        return logits_NV.scatter_add_(1, token_N[:, None], gradient_N[:, None]), None
