# pyright: basic
"""Mean BLEU of single answers, by `sacrebleu` (`evals.overlap`); the mean of sentences, which pairs up, and no corpus BLEU."""

import datasets
import evaluate

from evals.overlap import sentence_bleu

_DESCRIPTION = "Mean over answers of smoothed BLEU with one reference, in [0, 1]."


class SentenceBleu(evaluate.Metric):
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
        values = [sentence_bleu(answer, reference) for answer, reference in zip(predictions, references, strict=True)]
        return {"sentence_bleu": sum(values) / len(values), "values": values}
