"""How tasks of `lm-eval` are called here: `lm_eval.<task>.<metric>`, with the filter behind the metric where there is one.

The prefix tells them from suites of one name (both have a `gsm8k`).  Which way a metric is better is known for the names below
alone: a gate on another is given a bound, never a margin, and a task that means one of them otherwise is not measured by it.
"""

import re

PREFIX = "lm_eval"
PERPLEXITIES = {"perplexity": "continuation", "word_perplexity": "word", "byte_perplexity": "byte"}
"""metric of lm-eval that is no mean, but has a negative log-likelihood for each document -> of what"""
_HIGHER = ("acc", "exact_match", "f1", "em", "bleu", "chrf", "rouge", "likelihood", "prompt_level", "inst_level")
_LOWER = ("ter", "wer", "cer", "brier_score", *PERPLEXITIES)


def plain(name: str) -> str:
    """`name` as a part of a metric's name.

    >>> plain("strict-match"), plain("longproc_tom_0.5k"), plain("pass@1")
    ('strict_match', 'longproc_tom_0_5k', 'pass_1')
    """
    return re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")


def suite_of(task: str) -> str:
    """What is before the metric in its name.

    >>> suite_of("arc_easy")
    'lm_eval.arc_easy'
    """
    return f"{PREFIX}.{plain(task)}"


def called(task: str, metric: str, kept: str) -> str:
    """The name of `metric` of `task` after the filter `kept`; lm-eval calls no filter `none`.

    >>> called("arc_easy", "acc", "none"), called("gsm8k", "exact_match", "strict-match")
    ('lm_eval.arc_easy.acc', 'lm_eval.gsm8k.exact_match_strict_match')
    """
    return f"{suite_of(task)}.{plain(metric)}" + ("" if kept == "none" else f"_{plain(kept)}")


def is_one(name: str) -> bool:
    """Whether `name` is that of a metric of lm-eval, whole."""
    return re.fullmatch(rf"{PREFIX}\.[0-9A-Za-z_]+\.[0-9A-Za-z_]+", name) is not None


def counted_by(name: str) -> str | None:
    """What the perplexity `name` is of; None for a mean.

    >>> counted_by("lm_eval.wikitext.word_perplexity"), counted_by("lm_eval.arc_easy.acc")
    ('word', None)
    """
    return next((of for metric, of in PERPLEXITIES.items() if _begins(name, metric)), None)


def higher_is_better(name: str) -> bool | None:
    """Which way the metric `name`, whole or not, is better; None where the name does not say.

    >>> [higher_is_better(name) for name in ("lm_eval.x.acc_norm", "ter", "own_score")]
    [True, False, None]
    """
    if any(_begins(name, metric) for metric in _LOWER):
        return False
    return True if any(_begins(name, metric) for metric in _HIGHER) else None


def _begins(name: str, metric: str) -> bool:
    return re.match(rf"{metric}(_|\d|$)", plain(name.rpartition(".")[2])) is not None
