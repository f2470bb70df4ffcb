# pyright: basic
"""Share of answers that follow every verifiable instruction of their prompt, judged strictly: IFEval's prompt-level accuracy."""

import datasets
import evaluate

from evals.instructions import followed

_DESCRIPTION = "1 where all instructions are followed under strict judging, else 0."


class PromptStrict(evaluate.Metric):
    """predictions and references: text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers; references: instructions as evals.instructions writes them",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        found = [followed(answer, reference) for answer, reference in zip(predictions, references, strict=True)]
        values = [float(one.strict == one.of) for one in found]
        return {"prompt_strict": sum(values) / len(values), "values": values}
