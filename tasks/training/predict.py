# pyright: basic
"""What a task head says of held-out rows: one prediction a row, whatever it holds, and one score a row and metric.

Beside it, on the same rows, what always giving the most frequent training label would score: the subject `majority`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from evals import modules
from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.heads import MAJORITY, MODULES, PREDICTIONS_FILE, Head, PredictSpec, read_head
from tasks.tables import read_rows, score, write_scores
from tasks.training.batches import by_length, rows_at_once
from tasks.training.head_data import Window, best_span, collate, cut, rows_of
from tasks.training.head_models import padding
from tasks.training.heads import span_logits
from tasks.training.models import Loaded, load

ROWS = {"cpu": 32, "cuda": 256}
"""windows at once"""
TOKENS = {"cpu": 2048, "cuda": 32_768}
"""tokens of a batch at most, padding counted"""
_TABLE = pa.schema(
    [(name, pa.string()) for name in ("id", "conversation", "predicted", "expected")] + [("confidence", pa.float64())]
)


class Prediction(NamedTuple):
    """What the head says of one row."""

    said: Any
    """a label, a tag for each token, or a text of the context (empty: no answer)"""
    confidence: float
    """probability of the label; mean over tags; for an answer, the lead of its score over that of no answer, in logits"""


def run(spec: PredictSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` and `predictions.parquet` for the held-out rows of `inputs["data"]`."""
    head = read_head(inputs["policy"])
    rows = rows_of(head.kind, read_rows(inputs["data"] / "heldout.parquet", spec.limit), "heldout.parquet")
    loaded = load(inputs["policy"], run)
    found = predict(loaded, head, rows, run)
    scores = _scores(head, rows, [prediction.said for prediction in found], "")
    if head.majority is not None:
        scores += _scores(head, rows, [_always(head, row) for row in rows], MAJORITY)
    write_scores(out, scores)
    _write(out, rows, found)
    return {"predictions": len(rows), **_means(head, scores)}


@torch.inference_mode()
def predict(loaded: Loaded, head: Head, rows: Sequence[dict[str, Any]], run: Run) -> list[Prediction]:
    """One prediction for each row, in their order."""
    windows = cut(loaded.tokenizer, head, rows).windows
    kind, pad = loaded.device.type, padding(loaded.tokenizer)
    read: list[Any] = [None] * len(windows)
    done = 0
    for batch in by_length([len(w.ids) for w in windows], rows=rows_at_once(run, ROWS[kind]), tokens=TOKENS[kind]):
        features = collate([_features(windows[i]) for i in batch], pad, head.kind)
        given = {name: value.to(loaded.device) for name, value in features.items()}
        for i, outcome in zip(batch, _outcomes(loaded.model, head, given, [windows[i] for i in batch]), strict=True):
            read[i] = outcome
        done += len(batch)
        run.progress(Progress(done, len(windows), {}))
    by_row: list[list[Any]] = [[] for _ in rows]
    for window, outcome in zip(windows, read, strict=True):
        by_row[window.row].append(outcome)
    together = {"sequence_classification": _label, "token_classification": _tags, "question_answering": _answer}[head.kind]
    return [together(head, row, outcomes) for row, outcomes in zip(rows, by_row, strict=True)]


def _features(window: Window) -> dict[str, Any]:
    return {name: value for name, value in window.features(None).items() if name != "labels"}


@torch.inference_mode()
def head_logits(model: Any, window: Window, tokenizer: Any, head: Head) -> torch.Tensor:  # noqa: ANN401
    """All that the head says of one window, float32, on the CPU: (1, labels), (tokens, labels), or start and end (2, tokens)."""
    given = collate([_features(window)], padding(tokenizer), head.kind)
    device = next(model.parameters()).device
    given = {name: value.to(device) for name, value in given.items()}
    if head.kind == "question_answering":
        return torch.cat(span_logits(model, given)).cpu()
    logits = model(**given).logits.float().cpu()
    return logits if head.kind == "sequence_classification" else logits[0]


def _outcomes(model: Any, head: Head, given: dict[str, Any], windows: Sequence[Window]) -> list[Any]:  # noqa: ANN401
    """What the model says of each window; see `_label`, `_tags` and `_answer` for the form."""
    if head.kind == "sequence_classification":
        return list(model(**given).logits.double().softmax(-1).cpu())
    if head.kind == "token_classification":
        width = given["input_ids"].shape[1]
        share_BTC = model(**given).logits[:, -width:].double().softmax(-1).cpu()
        return [{word: share_TC[p] for p, (word, _) in w.places.items()} for w, share_TC in zip(windows, share_BTC, strict=True)]
    start_BT, end_BT = (x.cpu() for x in span_logits(model, given))
    return [
        (*best_span(start_T, end_T, w.places, head.max_answer_tokens), float(start_T[0] + end_T[0]))
        for w, start_T, end_T in zip(windows, start_BT, end_BT, strict=True)
    ]


def _label(head: Head, row: dict[str, Any], outcomes: Sequence[Any]) -> Prediction:
    """From the distribution over labels; a text of no token at all gets the most frequent label."""
    if not outcomes:
        return Prediction(head.majority, 0.0)
    best = int(outcomes[0].argmax())
    return Prediction(head.labels[best], float(outcomes[0][best]))


def _tags(head: Head, row: dict[str, Any], outcomes: Sequence[dict[int, Any]]) -> Prediction:
    """From the distribution over tags of each word; one of which no token is left gets the most frequent tag."""
    seen = {word: share for outcome in outcomes for word, share in outcome.items()}
    shares = [float(share.max()) for share in seen.values()]
    tags = [head.labels[int(seen[word].argmax())] if word in seen else head.majority for word in range(len(row["tokens"]))]
    return Prediction(tags, sum(shares) / len(shares) if shares else 0.0)


def _answer(head: Head, row: dict[str, Any], outcomes: Sequence[Any]) -> Prediction:
    """From (score, characters, score of no answer) of each window: the best span of all, cut from the context."""
    if not outcomes:
        return Prediction("", 0.0)
    best, (start, end), _ = max(outcomes, key=lambda outcome: outcome[0])
    lead = best - min(none for *_, none in outcomes)
    return Prediction("" if head.unanswerable and lead <= 0 else row["context"][start:end].strip(), lead)


def _always(head: Head, row: dict[str, Any]) -> Any:  # noqa: ANN401
    return head.majority if head.kind == "sequence_classification" else [head.majority] * len(row["tokens"])


def _scores(head: Head, rows: Sequence[dict[str, Any]], said: Sequence[Any], subject: str) -> list[dict[str, Any]]:
    found: dict[str, Sequence[float | None]] = {}
    for name in MODULES[head.kind]:
        if head.kind == "question_answering":
            found[name] = _best_reference(name, rows, said)
        else:
            texts = [" ".join(tags) for tags in said] if head.kind == "token_classification" else said
            found |= modules.columns(name, texts, [_expected(row) for row in rows], [""] * len(rows))
    if head.kind == "token_classification":
        found["tags_right"] = [
            float(sum(a == b for a, b in zip(tags, row["tags"], strict=True))) for tags, row in zip(said, rows, strict=True)
        ]
        found["tags"] = [float(len(row["tags"])) for row in rows]
    return [
        score(name, row, value, subject=subject)
        for name, values in found.items()
        for row, value in zip(rows, values, strict=True)
        if value is not None
    ]


def _best_reference(name: str, rows: Sequence[dict[str, Any]], said: Sequence[str]) -> list[float]:
    """The module's value for the answer that suits best, of those a row has; none at all is matched by no answer."""
    pairs = [(i, answer) for i, row in enumerate(rows) for answer in [a["text"] for a in row["answers"]] or [""]]
    values = modules.values(name, [said[i] for i, _ in pairs], [answer for _, answer in pairs], [""] * len(pairs))
    best = [0.0] * len(rows)
    for (i, _), value in zip(pairs, values, strict=True):
        best[i] = max(best[i], value or 0.0)
    return best


def _expected(row: dict[str, Any]) -> str:
    if row["form"] == "questions":
        return " | ".join(answer["text"] for answer in row["answers"])
    return row["label"] if row["form"] == "classes" else " ".join(row["tags"])


def _means(head: Head, scores: Sequence[dict[str, Any]]) -> Metrics:
    """Means of the metrics that are means, and shares of the counts that are not; of macro F1 only a verdict speaks."""
    sums: dict[tuple[str, str], list[float]] = {}
    for row in scores:
        sums.setdefault((row["metric"], row["subject"]), []).append(row["value"])
    found: Metrics = {}
    for subject in ("", MAJORITY):
        suffix = f"/{subject}" if subject else ""
        total = {name: sum(values) for (name, who), values in sums.items() if who == subject}
        for name in ("accuracy", "exact_match", "token_f1"):
            if name in total:
                found[name + suffix] = total[name] / len(sums[name, subject])
        if "tags" in total:
            both = total["entities_predicted"] + total["entities_true"]
            found["tag_accuracy" + suffix] = total["tags_right"] / total["tags"]
            found["entity_f1" + suffix] = 2 * total["entities_right"] / both if both else 0.0
    return found


def _write(out: Path, rows: Sequence[dict[str, Any]], found: Sequence[Prediction]) -> None:
    """For people: what was predicted, what was expected, how sure it was.  Ordered by id."""
    lines = [
        {
            "id": row["id"],
            "conversation": row["conversation"],
            "predicted": prediction.said if isinstance(prediction.said, str) else " ".join(prediction.said),
            "expected": _expected(row),
            "confidence": round(prediction.confidence, 6),
        }
        for row, prediction in zip(rows, found, strict=True)
    ]
    table = pa.Table.from_pylist(lines, schema=_TABLE)
    pq.write_table(table, out / PREDICTIONS_FILE, compression="zstd", version="2.6", row_group_size=100_000)
