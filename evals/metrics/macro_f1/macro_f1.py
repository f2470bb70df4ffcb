# pyright: basic
"""Macro F1: the mean over labels of 2 right / (predicted + true), over the labels that are predicted or true anywhere.

No mean over items, so per item it gives counts: which label is true and which was predicted, as numbers in sorted order.
"""

import datasets
import evaluate

_DESCRIPTION = "Mean over labels of each one's F1; labels that neither occur nor are predicted are left out."


class MacroF1(evaluate.Metric):
    """predictions and references: labels as text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: labels; references: true labels",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        predicted, true = ([label.strip() for label in labels] for labels in (predictions, references))
        names = sorted({*predicted, *true})
        f1 = []
        for name in names:
            right = sum(a == b == name for a, b in zip(predicted, true, strict=True))
            f1.append(2 * right / (predicted.count(name) + true.count(name)))
        number = {name: float(i) for i, name in enumerate(names)}
        counts = {"label_predicted": [number[name] for name in predicted], "label_true": [number[name] for name in true]}
        return {"macro_f1": sum(f1) / len(f1), "counts": counts}
