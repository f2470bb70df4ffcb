# pyright: basic
"""ORPO on the rows and the loop of DPO: imitation of chosen answers and their odds over rejected ones, no reference.

The loss is our own: TRL's ORPO is experimental, tokenises by itself, and averages imitation over the tokens of a micro-batch, so
that its result depends on how a batch is cut.  Here every term is a mean over pairs, and the likelihood of an answer the
geometric mean over its tokens (section 4.2 of the paper).
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from tasks.core.contract import Inputs, Metrics, Run
from tasks.preference import OrpoSpec
from tasks.training.adapters import start
from tasks.training.data import encode_pairs, read_rows, schedule
from tasks.training.dpo import adapter_copy
from tasks.training.fit import Quiet, able, arguments, cheap_head, fit, row_metrics
from tasks.training.preflight import plan_batches
from tasks.training.vision import encoder_for

_CERTAIN = -1e-6
"""nats per token above which an answer counts as this likely: odds of a certain one have no logarithm"""


class OrpoLoss(NamedTuple):
    """Terms of the loss, means over pairs."""

    loss: Tensor
    imitation: Tensor
    """negative log-likelihood of chosen answers, nats per token"""
    log_odds: Tensor
    """how far chosen answers are ahead of rejected ones, nats"""


def orpo_loss(chosen_B: Tensor, rejected_B: Tensor, *, beta: float) -> OrpoLoss:
    """ORPO, eq. 6 and 7 of arXiv:2403.07691.  Arguments: log-probability, mean over an answer's tokens; (B,), nats.

    >>> half, third = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()  # odds 1 and 1/3
    >>> [round(float(term), 4) for term in orpo_loss(half, third, beta=0.5)]
    [0.837, 0.6931, 1.0986]
    """
    log_odds_B = _log_odds(chosen_B) - _log_odds(rejected_B)
    imitation = -chosen_B.mean()
    return OrpoLoss(imitation - beta * logsigmoid(log_odds_B).mean(), imitation, log_odds_B.mean())


def _log_odds(logp_B: Tensor) -> Tensor:
    """log p - log(1 - p)."""
    logp_B = logp_B.clamp(max=_CERTAIN)
    return logp_B - torch.log(-torch.expm1(logp_B))


class _Orpo(Quiet, DPOTrainer):
    """TRL's trainer of pairs on rows that are tokenised, with another loss."""

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:  # noqa: ANN401
        said = inputs.pop("completion_mask")
        labels = inputs["input_ids"].masked_fill(said == 0, -100)
        more = {"output_router_logits": True} if self.aux_loss_enabled else {}
        given = model(**inputs, **more, labels=labels, use_cache=False, fused_lm_head=True)
        mean_B = given.log_probs.sum(dim=1).float() / said.sum(dim=1)
        chosen_B, rejected_B = mean_B.chunk(2)
        found = orpo_loss(chosen_B, rejected_B, beta=self.beta)
        ahead = (chosen_B > rejected_B).float().mean()
        named = {"nll": found.imitation, "odds_ratio": found.log_odds, "accuracy": ahead}
        for name, value in zip(named, self._over_processes(torch.stack([*named.values()])), strict=True):
            self._metrics["train"][name].append(value)
        return found.loss + self.router_aux_loss_coef * given.aux_loss if more else found.loss

    def _over_processes(self, values: Tensor) -> list[float]:
        mean: Any = self.accelerator.reduce(values.detach(), "mean")
        return mean.tolist()


def run(spec: OrpoSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Train `inputs["policy"]` on the pairs of `inputs["data"]`."""
    run = able(spec, run)
    begin = start(inputs["policy"], spec, run)
    encoder = encoder_for(begin.loaded, inputs["data"], model=begin.model)
    encoded = encode_pairs(encoder, read_rows(inputs["data"], "train"), max_length=spec.max_length)
    encoded.check(spec.dropped_budget, "train.parquet")
    rows = encoded.rows
    lengths = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    longest = max(len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows)
    order = schedule(lengths, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps, seed=spec.seed)
    run.log(f"data: {len(rows)} of {encoded.total} pairs, {encoded.truncated} cut at {spec.max_length} tokens")
    batches = plan_batches(spec, run, begin.model, rows=len(order), longest=longest, texts=2)
    cheap_head(run)
    with adapter_copy(begin.model):
        trainer = _Orpo(
            model=begin.model,
            args=arguments(
                DPOConfig, spec, run, batches, max_length=None, beta=spec.beta, precompute_ref_log_probs=True,
                disable_dropout=False,
            ),
            train_dataset=Dataset.from_list([rows[i] for i in order]),
            processing_class=encoder.tokenizer,
            data_collator=DataCollatorForPreference(pad_token_id=encoder.pad),
        )  # fmt: skip
    metrics = fit(trainer, begin, batches, out, run, tokens=sum(lengths[i] for i in order))
    trained = sum(len(rows[i]["chosen_ids"]) + len(rows[i]["rejected_ids"]) for i in order)
    return {**row_metrics(encoded), **metrics, "trained_tokens": trained}
