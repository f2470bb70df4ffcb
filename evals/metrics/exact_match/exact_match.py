# pyright: basic
"""Share of answers equal to their reference, but for case, spacing, outer punctuation and width (NFKC)."""

import unicodedata

import datasets
import evaluate

_DESCRIPTION = "1 where the answer equals its reference after normalising case, width, spacing and outer punctuation, else 0."


class ExactMatch(evaluate.Metric):
    """predictions and references: text; an empty reference is matched by an empty answer alone."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers; references: expected answers",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        values = [float(_plain(answer) == _plain(wanted)) for answer, wanted in zip(predictions, references, strict=True)]
        return {"exact_match": sum(values) / len(values), "values": values}


def _plain(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start, end = 0, len(text)
    while start < end and _skipped(text[start]):
        start += 1
    while end > start and _skipped(text[end - 1]):
        end -= 1
    return text[start:end] or text  # an answer of punctuation alone is compared as it is


def _skipped(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Po", "Ps", "Pe", "Pi", "Pf") or character.isspace()
