# pyright: basic
"""Multiple choice: which of several texts a policy finds likeliest, by their summed and their length-normalised log-probability.

Asked as a chat, a choice is the assistant's whole turn, stop token included.  Asked as a text, it goes on after the prompt and a
space, and the tokens that end behind the prompt count: what the template does not say cannot be held against a base model.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals import suite
from tasks.core.contract import Inputs, Metrics, Run
from tasks.core.errors import DataError, SpecError
from tasks.suites import ChoicesSpec, write_suite_scores
from tasks.tables import PROMPTS_FILE, read_rows, score
from tasks.training.data import Encoder
from tasks.training.models import load
from tasks.training.score import Text, log_probabilities
from tasks.training.seq2seq import Seq2SeqEncoder
from tasks.training.vision import encoder_for


def run(spec: ChoicesSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet`: for each question whether the right choice is the likeliest, and its share of the probability.

    `accuracy` goes by the sum over a choice's tokens, `accuracy_normalised` by that sum over its characters, whose number, unlike
    that of tokens, is no matter of the tokenizer; of equals the first is taken.  `gold_probability` is the softmax of the sums.
    """
    rows = read_rows(inputs["prompts"] / PROMPTS_FILE)
    if "choices" not in rows[0]:
        raise DataError(f"suite {spec.suite}: its prompts have no choices; is this an artifact of another suite?")
    asks = suite.suite(spec.suite).asks
    loaded = load(inputs["policy"], run, task="policy")
    encoder = encoder_for(loaded, model=loaded.model)
    if asks == "text" and isinstance(encoder, Seq2SeqEncoder):
        raise SpecError(
            f"suite {spec.suite} asks for a text that goes on, which an encoder-decoder model does not write; use chat"
        )
    make = _gone_on if asks == "text" else _answered
    texts = [make(encoder, row, choice) for row in rows for choice in row["choices"]]
    for text in texts:
        if len(text.ids) > spec.max_length:
            raise DataError(
                f"suite {spec.suite}: {text.row['id']} has {len(text.ids)} tokens, more than max_length {spec.max_length}"
            )
    sums = iter(total for total, _ in log_probabilities(loaded, encoder, texts, run))
    scores, found = [], {name: 0.0 for name in suite.CHOICES}
    for row in rows:
        values = judged(row["choices"], row["gold"], [next(sums) for _ in row["choices"]])
        scores += [score(f"{spec.suite}.{name}", row, value) for name, value in values.items()]
        found = {name: total + values[name] for name, total in found.items()}
    settings = {"asks": asks, "max_length": spec.max_length}
    write_suite_scores(out, scores, spec.suite, inputs["prompts"], settings)
    chance = sum(1 / len(row["choices"]) for row in rows) / len(rows)
    return {**{name: total / len(rows) for name, total in found.items()}, "questions": len(rows), "chance": chance}


def judged(choices: Sequence[str], gold: int, sums: Sequence[float]) -> dict[str, float]:
    """What the log-probabilities `sums` of `choices`, nats, say of the choice at `gold`.

    >>> judged(["no", "certainly"], 1, [-2.0, -3.0])
    {'accuracy': 0.0, 'accuracy_normalised': 1.0, 'gold_probability': 0.2689414213699951}
    """
    by_length = [total / len(choice) for total, choice in zip(sums, choices, strict=True)]
    if not all(map(math.isfinite, sums)):
        raise DataError(
            f"the policy gives the choice {choices[0]!r:.40} or its like no finite likelihood; did its training diverge?"
        )
    top = max(sums)
    mass = [math.exp(total - top) for total in sums]
    return {
        "accuracy": float(sums.index(top) == gold),
        "accuracy_normalised": float(by_length.index(max(by_length)) == gold),
        "gold_probability": mass[gold] / sum(mass),
    }


def _answered(encoder: Encoder, row: dict[str, Any], choice: str) -> Text:
    pieces = encoder.pieces([*row["prompt"], {"role": "assistant", "content": choice}])
    last = max(i for i, piece in enumerate(pieces) if piece.answer)
    before = [token for piece in pieces[:last] for token in piece.ids]
    scored = [False] * len(before) + [True] * len(pieces[last].ids)
    return Text("", row, [*before, *pieces[last].ids], scored, mean=False)


def _gone_on(encoder: Encoder, row: dict[str, Any], choice: str) -> Text:
    """Prompt and choice as one text, cut into tokens as one; a token that reaches over the prompt's end belongs to the choice."""
    prompt = row["prompt"][-1]["content"].rstrip()
    told = encoder.tokenizer(f"{prompt} {choice}", return_offsets_mapping=True)
    scored = [end > len(prompt) for _, end in told["offset_mapping"]]
    if scored[0]:
        raise DataError(f"{row['id']}: no token of its prompt comes before the choice {choice!r:.40}")
    return Text("", row, list(told["input_ids"]), scored, mean=False)
