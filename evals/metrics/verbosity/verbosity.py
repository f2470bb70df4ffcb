# pyright: basic
"""Words of the answers over words of their references: 1 is as long as the reference, and above it wordier.

No mean over answers, so per answer it gives counts: its words, and its reference's.
"""

import datasets
import evaluate

from evals.overlap import words

_DESCRIPTION = "Words of all answers over words of all references."


class Verbosity(evaluate.Metric):
    """predictions and references: text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers; references: expected answers",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        counts = {
            "answer_words": [float(len(words(answer))) for answer in predictions],
            "reference_words": [float(len(words(reference))) for reference in references],
        }
        return {"verbosity": sum(counts["answer_words"]) / max(1.0, sum(counts["reference_words"])), "counts": counts}
