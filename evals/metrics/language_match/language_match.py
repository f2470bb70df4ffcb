# pyright: basic
"""Share of answers in the language of their prompt (`evals.language`); a prompt that leaves the language open has no value."""

import datasets
import evaluate

from evals.language import same_language

_DESCRIPTION = "1 where the answer is in the language of its prompt, else 0; no value where the prompt leaves it open."


class LanguageMatch(evaluate.Metric):
    """predictions and prompts: text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers; prompts: what the user said last",
            features=datasets.Features({"predictions": text, "prompts": text}),
        )

    def _compute(self, predictions: list[str], prompts: list[str]) -> dict:
        values = [same_language(prompt, answer) for answer, prompt in zip(predictions, prompts, strict=True)]
        judged = [value for value in values if value is not None]
        return {"language_match": sum(judged) / max(1, len(judged)), "values": values}
