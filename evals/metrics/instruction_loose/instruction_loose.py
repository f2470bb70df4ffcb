# pyright: basic
"""Share of all verifiable instructions that are followed, judged loosely: IFEval's instruction-level accuracy.

No mean over answers, so per answer it gives counts: instructions followed, and all of them.
"""

import datasets
import evaluate

from evals.instructions import followed

_DESCRIPTION = "Instructions followed under loose judging over all instructions."


class InstructionLoose(evaluate.Metric):
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
        counts = {"followed_loose": [float(one.loose) for one in found], "instructions_loose": [float(one.of) for one in found]}
        return {"instruction_loose": sum(counts["followed_loose"]) / sum(counts["instructions_loose"]), "counts": counts}
