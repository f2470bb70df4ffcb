# pyright: basic
"""A policy's answers: prompts of like length in a batch, padded on the left, key-value cache; finished rows leave the batch.

Every answer has random draws of its own, so it does not depend on the batch it was written in.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import DataError
from tasks.generate import AnswersSpec
from tasks.tables import practice_prompts, write_answers
from tasks.training import seq2seq
from tasks.training.batches import by_length, padded, rows_at_once, soft_prompt, soft_tokens, under_soft_prompt
from tasks.training.data import Encoder
from tasks.training.models import Loaded, load
from tasks.training.seq2seq import Seq2SeqEncoder
from tasks.training.vision import encoder_for, keep_images

ROWS = {"cpu": 32, "cuda": 64}
"""prompts at once"""
TOKENS = {"cpu": 16_384, "cuda": 131_072}
"""prompt and answer tokens of a batch at most: they are held in the key-value cache"""
Pick = Callable[[Tensor, list[int], int], Tensor]
"""`(logits_BV, rows, step) -> tokens_B`: the next token of each row"""


def run(spec: AnswersSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `answers.parquet` for the prompts in `inputs`."""
    rows = _asked(practice_prompts(inputs["prompts"]), spec)
    loaded = load(inputs["policy"], run, task="policy")
    encoder = encoder_for(loaded, inputs["prompts"], model=loaded.model)
    told = encoder.prepared(rows)
    _check_told(encoder, told)
    prompts = [encoder.prompt(row["prompt"]) for row in told]
    pictures = [encoder.pictures(row["prompt"]) for row in told]
    _check_room(loaded, rows, prompts, spec.max_new_tokens)
    pick = _sampler(spec, [_drawn_by(row) for row in rows]) if spec.temperature else _likeliest
    spoken_by_number = dict(answers(loaded, encoder, prompts, spec.max_new_tokens, pick, run, pictures))
    table = []
    for number, row in enumerate(rows):
        ids = spoken_by_number[number]
        finished = bool(ids) and ids[-1] in encoder.stops
        spoken = ids[:-1] if finished else ids
        text = loaded.tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        kept = {name: row[name] for name in ("id", "conversation", "task", "prompt", "images", "sample") if name in row}
        table.append({**kept, "answer": text, "tokens": len(spoken), "finished": finished})
    write_answers(out, table)
    keep_images(inputs["prompts"], out, [name for names in pictures for name in names])
    return {
        "answers": len(table),
        "tokens": sum(row["tokens"] for row in table),
        "finished": sum(row["finished"] for row in table) / len(table),
    }


def _asked(prompts: Sequence[dict[str, Any]], spec: AnswersSpec) -> list[dict[str, Any]]:
    """A row for each answer that is wanted: the prompt's, with `sample` where it is answered several times."""
    count = min(spec.limit or len(prompts), len(prompts))
    rows = sorted((prompts[(spec.skip + i) % len(prompts)] for i in range(count)), key=lambda row: row["id"])
    if spec.samples == 1:
        return rows
    return [{**row, "sample": sample} for row in rows for sample in range(spec.samples)]


def _drawn_by(row: dict[str, Any]) -> str:
    """Whose draws an answer takes: the prompt's, and of further samples the sample's."""
    return f"{row['id']}\n{row['sample']}" if row.get("sample") else row["id"]


def answers(
    loaded: Loaded,
    encoder: Encoder,
    prompts: Sequence[list[int]],
    new_tokens: int,
    pick: Pick,
    run: Run,
    pictures: Sequence[Sequence[str]] = (),
) -> Iterator[tuple[int, list[int]]]:
    """Yield (number of the prompt, tokens of its answer, stop token included), batch by batch; `pictures`: of each prompt."""
    kind = loaded.device.type
    batches = list(
        by_length(
            [soft_tokens(loaded.model) + len(prompt) + new_tokens for prompt in prompts],
            rows=rows_at_once(run, ROWS[kind]), tokens=TOKENS[kind],
        )
    )  # fmt: skip
    done = tokens = 0
    for batch in batches:
        of_batch, shown = partial(_of_batch, pick, batch), [pictures[i] for i in batch] if pictures else ()
        spoken = decode(loaded.model, [prompts[i] for i in batch], encoder, new_tokens, of_batch, shown)
        done, tokens = done + len(batch), tokens + sum(map(len, spoken))
        run.progress(Progress(done, len(prompts), {"tokens": tokens}))
        yield from zip(batch, spoken, strict=True)


def decode(
    model: Any,  # noqa: ANN401  transformers and PEFT models
    prompts: Sequence[list[int]],
    encoder: Encoder,
    new_tokens: int,
    pick: Pick,
    pictures: Sequence[Sequence[str]] = (),
) -> list[list[int]]:
    """The answer to each of `prompts`, at most `new_tokens` tokens; `pick` gets positions in `prompts`."""
    spoken: list[list[int]] = [[] for _ in prompts]
    for said in speak(model, prompts, encoder, new_tokens, pick, pictures=pictures):
        for row, token in said:
            spoken[row].append(token)
    return spoken


@torch.inference_mode()
def speak(
    model: Any,  # noqa: ANN401  transformers and PEFT models
    prompts: Sequence[list[int]],
    encoder: Encoder,
    new_tokens: int,
    pick: Pick,
    quiet: Collection[int] = (),
    pictures: Sequence[Sequence[str]] = (),
) -> Iterator[list[tuple[int, int]]]:
    """Yield the next (row, token) of every row that still speaks, step by step; a row ends at its stop token, or once in `quiet`.

    A soft prompt, and `pictures` (of each prompt), enter the cache in the first step; the base model does the rest.
    """
    if isinstance(encoder, Seq2SeqEncoder):
        yield from seq2seq.speak(model, prompts, encoder, new_tokens, pick, quiet)
        return
    ids_BT, mask_BT = padded(prompts, encoder.pad, model.device, left=True)
    given = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0)}
    forward = model
    if soft_prompt(model):
        forward, given = model.get_base_model(), under_soft_prompt(model, ids_BT, mask_BT)
    given |= encoder.seen(ids_BT, pictures)
    given["position_ids"] = encoder.positions(model, given)
    mask_BT, position_BT = given["attention_mask"], given["position_ids"]
    rows = list(range(len(prompts)))
    for step in range(new_tokens):
        output = forward(**given, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        next_B = pick(output.logits[:, -1].float(), rows, step)
        said = list(zip(rows, next_B.tolist(), strict=True))
        yield said
        alive = [i for i, (row, token) in enumerate(said) if token not in encoder.stops and row not in quiet]
        if not alive:
            return
        if len(alive) < len(rows):
            keep = torch.tensor(alive, device=next_B.device)
            cache.batch_select_indices(keep)
            next_B, mask_BT, position_BT = next_B[keep], mask_BT[keep], position_BT[..., keep, :]
            rows = [rows[i] for i in alive]
        position_BT = position_BT[..., -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        given = {"input_ids": next_B[:, None], "attention_mask": mask_BT, "position_ids": position_BT, "past_key_values": cache}


def _of_batch(pick: Pick, batch: Sequence[int], logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
    return pick(logits_BV, [batch[row] for row in rows], step)


def _likeliest(logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
    return logits_BV.argmax(dim=-1)


def _sampler(spec: AnswersSpec, ids: Sequence[str]) -> Pick:
    """Nucleus sampling at draws that belong to the answer and the step."""
    draws = np.stack([uniform(spec.seed, name, spec.max_new_tokens) for name in ids])

    def pick(logits_BV: Tensor, rows: list[int], step: int) -> Tensor:
        return drawn(logits_BV, draws[rows, step], temperature=spec.temperature, top_p=spec.top_p)

    return pick


def drawn(logits_BV: Tensor, uniform_B: np.ndarray, *, temperature: float, top_p: float) -> Tensor:
    """Nucleus sampling (arXiv:1904.09751) by inverting each row's distribution at its number in [0, 1)."""
    share_BV, token_BV = torch.softmax(logits_BV.double() / temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    upto_BV = share_BV.cumsum(dim=-1)
    kept_B = ((upto_BV - share_BV) < top_p).sum(dim=-1, keepdim=True)
    mass_B = upto_BV.gather(1, kept_B - 1)
    drawn_B = torch.from_numpy(uniform_B).to(logits_BV.device)[:, None] * mass_B
    place_B = torch.searchsorted(upto_BV, drawn_B, right=True).minimum(kept_B - 1)
    return token_BV.gather(1, place_B)[:, 0]


def uniform(seed: int, name: str, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) that belong to `seed` and `name`."""
    key = int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def _check_told(encoder: Encoder, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if reason := encoder.unusable(row["prompt"]):
            raise DataError(f"prompt {row['id']}: the model cannot be asked this ({reason}); curate it away")


def _check_room(loaded: Loaded, rows: Sequence[dict[str, Any]], prompts: Sequence[list[int]], new_tokens: int) -> None:
    room = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    for row, prompt in zip(rows, prompts, strict=True):
        needed = soft_tokens(loaded.model) + len(prompt)
        if room and needed + new_tokens > room:
            raise DataError(
                f"prompt {row['id']}: {needed} tokens and {new_tokens} new ones exceed the model's {room} positions; lower "
                "max_new_tokens or curate long prompts away"
            )
