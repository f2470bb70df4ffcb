# pyright: basic
"""Entity F1: spans of BIO tags are right where start, end and type all are; 2 right / (predicted + true) over all items together.

No mean over items, so per item it gives counts: entities that are right, predicted, true.  A span starts at B-, or at an I- that
goes on from nothing of its type (as the CoNLL-2003 scorer reads it), and ends before the next tag that does not go on.  S- and U-
are read as B-, E- and L- as I-.
"""

import datasets
import evaluate

_BIO = {"S": "B", "U": "B", "E": "I", "L": "I"}
_DESCRIPTION = "F1 over entities, exact match of span and type, counted over all items together; 0 where there are none."


class EntityF1(evaluate.Metric):
    """predictions and references: tags with white space between them, as `B-PER I-PER O`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: BIO tags; references: true BIO tags",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        predicted, true = ([_spans(tags.split()) for tags in column] for column in (predictions, references))
        counts = {
            "entities_right": [float(len(a & b)) for a, b in zip(predicted, true, strict=True)],
            "entities_predicted": [float(len(found)) for found in predicted],
            "entities_true": [float(len(found)) for found in true],
        }
        right, both = sum(counts["entities_right"]), sum(counts["entities_predicted"]) + sum(counts["entities_true"])
        return {"entity_f1": 2 * right / both if both else 0.0, "counts": counts}


def _spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """`(first, after last, type)` of each entity."""
    found, start, kind = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        place, _, name = tag.partition("-")
        place = _BIO.get(place, place)
        goes_on = place == "I" and name == kind and kind != ""
        if kind and not goes_on:
            found.add((start, i, kind))
            kind = ""
        if not goes_on and place in ("B", "I") and name:
            start, kind = i, name
    return found
