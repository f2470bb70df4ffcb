# pyright: basic
"""How likely a policy finds held-out data: log-probabilities of the tokens it would have to write, and of no others.

The head is applied to the positions that predict a scored token only, so memory does not grow with prompts or padding.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evals.scores import CUT
from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import DataError
from tasks.measure import ScoresSpec, longer
from tasks.tables import read_rows, score, write_scores
from tasks.training import seq2seq
from tasks.training.batches import by_length, padded, rows_at_once, soft_tokens
from tasks.training.data import Encoder, told_twice
from tasks.training.models import Loaded, load
from tasks.training.seq2seq import Seq2SeqEncoder
from tasks.training.vision import encoder_for

ROWS = {"cpu": 64, "cuda": 256}
"""texts at once"""
TOKENS = {"cpu": 2048, "cuda": 32_768}
"""tokens of a batch at most, padding counted"""
_HEAD_ROWS = 256
"""positions whose distribution over the vocabulary is normalised at once"""


class Text(NamedTuple):
    """Something to score."""

    metric: str
    row: dict[str, Any]
    ids: list[int]
    scored: list[bool]
    """tokens that count; (T,)"""
    mean: bool
    """the mean negative log-likelihood, else the summed log-probability"""
    pictures: Sequence[str] = ()
    """names of its images"""


def run(spec: ScoresSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` for the held-out sets in `inputs`."""
    loaded = load(inputs["policy"], run, task="policy")
    held = [inputs[name] for name in ("preferences", "instructions") if name in inputs]
    encoder = encoder_for(loaded, *held, model=loaded.model)
    texts: list[Text] = []
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    if "preferences" in inputs:
        pairs = read_rows(inputs["preferences"] / "heldout.parquet", spec.limit)
        texts += _pairs(encoder, pairs, spec.max_length, left_out, rows)
        rows += longer(pairs)
    if "instructions" in inputs:
        instructions = read_rows(inputs["instructions"] / "heldout.parquet", spec.limit)
        texts += _instructions(encoder, instructions, spec.max_length, left_out)
    if "texts" in inputs:
        texts += _texts(encoder, read_rows(inputs["texts"] / "texts.parquet", spec.limit), spec.max_length, left_out)
    if not texts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise DataError(
            f"nothing to score ({reasons or 'no data given'}); give preferences, instructions or texts, or raise max_length"
        )
    sums: dict[str, list[float]] = {}
    for text, (total, tokens) in zip(texts, log_probabilities(loaded, encoder, texts, run), strict=True):
        value = -total / tokens if text.mean else total
        rows.append(score(text.metric, text.row, value, weight=tokens))
        sums.setdefault(text.metric, []).append(value)
    write_scores(out, rows)
    means: Metrics = {name: sum(values) / len(values) for name, values in sorted(sums.items())}
    return {**means, "texts": len(texts), "left_out": dict(sorted(left_out.items()))}


def log_probabilities(loaded: Loaded, encoder: Encoder, texts: Sequence[Text], run: Run) -> list[tuple[float, int]]:
    """For each text the summed log-probability of its scored tokens, nats, and their number."""
    kind = loaded.device.type
    lengths = [soft_tokens(loaded.model) + len(text.ids) for text in texts]
    found: list[tuple[float, int]] = [(0.0, 0)] * len(texts)
    done = 0
    for batch in by_length(lengths, rows=rows_at_once(run, ROWS[kind]), tokens=TOKENS[kind]):
        sums = _sums(loaded.model, encoder, [texts[i] for i in batch])
        for i, total in zip(batch, sums, strict=True):
            found[i] = (total, sum(texts[i].scored[1:]))
        done += len(batch)
        run.progress(Progress(done, len(texts), {}))
    return found


@torch.inference_mode()
def _sums(model: Any, encoder: Encoder, texts: Sequence[Text]) -> list[float]:  # noqa: ANN401
    """Summed log-probability of each text's scored tokens.  N: scored tokens of the whole batch.

    Rows are padded on the right: under causal attention the padding reaches no token before it, so no mask is needed.
    """
    if isinstance(encoder, Seq2SeqEncoder):
        return seq2seq.summed(model, encoder, [seq2seq.turn(text.ids, text.scored) for text in texts])
    ids_BT, _ = padded([text.ids for text in texts], encoder.pad, model.device)
    seen = encoder.seen(ids_BT, [text.pictures for text in texts])
    where = [(b, t) for b, text in enumerate(texts) for t in range(1, len(text.ids)) if text.scored[t]]
    row_N, token_N = torch.tensor(where, device=ids_BT.device).T
    before_end = ids_BT.shape[1] - (token_N - 1)  # counted from the end, where no soft prompt shifts positions

    def only_scored(head: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ANN401
        hidden_BTH = given[0]
        return (hidden_BTH[row_N, hidden_BTH.shape[1] - before_end][None], *given[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(only_scored)
    try:
        logits_NV = model(input_ids=ids_BT, use_cache=False, **seen).logits[0]
    finally:
        hook.remove()
    wanted_N = ids_BT[row_N, token_N]
    parts = [
        part_NV.float().gather(1, want_N[:, None])[:, 0] - part_NV.float().logsumexp(dim=1)
        for part_NV, want_N in zip(logits_NV.split(_HEAD_ROWS), wanted_N.split(_HEAD_ROWS), strict=True)
    ]
    sums_B = torch.zeros(len(texts), dtype=torch.float64, device=ids_BT.device)
    return sums_B.index_add(0, row_N, torch.cat(parts).double()).tolist()


def _pairs(
    encoder: Encoder, rows: Sequence[dict[str, Any]], max_length: int, left_out: Counter[str], cuts: list[dict[str, Any]]
) -> list[Text]:
    """Both answers of each pair; where one is cut, `cuts` gets a score that says so: another tokenizer cuts elsewhere."""
    texts: list[Text] = []
    for row in encoder.prepared(rows):
        if reason := encoder.unusable(told_twice(row)):
            left_out[reason] += 1
            continue
        chosen, rejected = (_answer(encoder, row, side) for side in ("chosen", "rejected"))
        if encoder.cuts_image(chosen.ids, max_length):
            left_out["images that do not fit max_length"] += 1
        elif not _fits(chosen, max_length) or not _fits(rejected, max_length):
            left_out["pairs whose prompt fills max_length"] += 1
        elif chosen.ids[:max_length] == rejected.ids[:max_length]:
            left_out["pairs equal within max_length"] += 1
        else:
            texts += [_cut(chosen, max_length), _cut(rejected, max_length)]
            if cut := sum(len(answer.ids) > max_length for answer in (chosen, rejected)):
                cuts.append(score(CUT, row, cut))
    return texts


def _answer(encoder: Encoder, row: dict[str, Any], side: str) -> Text:
    """The last assistant turn alone counts, stop token included; what the template writes after it is no part of it."""
    pieces = encoder.pieces([*row["prompt"], {"role": "assistant", "content": row[side]}])
    last = max(i for i, piece in enumerate(pieces) if piece.answer)
    before = [token for piece in pieces[:last] for token in piece.ids]
    scored = [False] * len(before) + [True] * len(pieces[last].ids)
    return Text(f"{side}_logp", row, [*before, *pieces[last].ids], scored, mean=False, pictures=encoder.pictures(row["prompt"]))


def _instructions(encoder: Encoder, rows: Sequence[dict[str, Any]], max_length: int, left_out: Counter[str]) -> list[Text]:
    texts: list[Text] = []
    for row in encoder.prepared(rows):
        if reason := encoder.unusable(row["messages"]):
            left_out[reason] += 1
            continue
        pieces = encoder.pieces(row["messages"])
        ids = [token for piece in pieces for token in piece.ids]
        scored = [piece.answer for piece in pieces for _ in piece.ids]
        text = Text("answer_nll", row, ids, scored, mean=True, pictures=encoder.pictures(row["messages"]))
        if encoder.cuts_image(ids, max_length):
            left_out["images that do not fit max_length"] += 1
        elif _fits(text, max_length):
            texts.append(_cut(text, max_length))
        else:
            left_out["instructions whose prompt fills max_length"] += 1
    return texts


def _texts(encoder: Encoder, rows: Sequence[dict[str, Any]], max_length: int, left_out: Counter[str]) -> list[Text]:
    if isinstance(encoder, Seq2SeqEncoder):
        left_out["texts, to which an encoder-decoder model gives no likelihood"] += len(rows)
        return []
    texts: list[Text] = []
    for row in rows:
        ids = encoder.tokenizer.encode(row["text"])[:max_length]
        if len(ids) < 2:
            left_out["texts of fewer than 2 tokens"] += 1
        else:
            texts.append(Text("text_nll", row, ids, [True] * len(ids), mean=True))
    return texts


def _fits(text: Text, max_length: int) -> bool:
    return any(text.scored[1:max_length])


def _cut(text: Text, max_length: int) -> Text:
    return text._replace(ids=text.ids[:max_length], scored=text.scored[:max_length])
