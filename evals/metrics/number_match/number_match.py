# pyright: basic
"""1 where the last number of the answer is the last number of its reference (GSM8K style, see `evals.numbers`), else 0."""

import datasets
import evaluate

from evals.numbers import last_number

_DESCRIPTION = "1 where the final numbers of answer and reference are equal, else 0; a reference without a number is refused."


class NumberMatch(evaluate.Metric):
    """predictions and references: text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers; references: expected answers that end in a number",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        wanted = [last_number(reference) for reference in references]
        if None in wanted:
            raise ValueError(f"reference {references[wanted.index(None)]!r:.60} has no number")
        values = [float(last_number(answer) == number) for answer, number in zip(predictions, wanted, strict=True)]
        return {"number_match": sum(values) / len(values), "values": values}
