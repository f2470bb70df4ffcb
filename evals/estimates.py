"""METRICS: what can be gated, and how each is estimated from the per-item scores of docs/artifacts.md.

A metric names its raw scores in `needs` and turns them, aligned item by item, into a `Sample`.  A new one is one row here; a
metric of the answers' text is a module instead, see `evals.modules`; `<suite>.<metric>` belongs to a suite, see `evals.suite`,
and `lm_eval.<task>.<metric>` to a task of lm-eval, see `evals.harness`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evals import harness, modules, suite
from evals.scores import CUT, Scores, Series
from evals.statistics import Floats, Sample, contrast, difference, macro_f1, mean, perplexity, perplexity_ratio, ratio, shares
from tasks.core.errors import DataError, SpecError

Against = Literal["parent", "base", "champion", "majority"]
COMPARATORS: tuple[Against, ...] = ("parent", "base", "champion", "majority")
_OTHER = "against"
"""stands in `needs` for whichever subject the metric is compared with"""
_SHARE = (0.0, 1.0)
_GAIN = (-1.0, 1.0)


@dataclass(frozen=True)
class Metric:
    """A quantity that a gate may bound."""

    of: Callable[..., Sample]
    """the series of `needs`, in that order -> what is estimated"""
    needs: tuple[tuple[str, str], ...]
    """(subject, raw metric); the subject `against` is the one compared with"""
    unit: str
    better: Literal["higher", "lower"]
    meaning: str
    differs: bool = False
    """measured on the candidate alone, or with `against` as its value less the other's"""
    neutral: float | None = None
    """what it is where the candidate equals the other; 1 is that of ratios"""
    by_token: bool = False
    """whether it compares what is counted by token, which two tokenizers make different things"""
    by_template: bool = False
    """whether those are tokens of a chat, which two templates make different things: another space, another stop token"""

    @property
    def comparative(self) -> bool:
        """Whether it compares the candidate with another model."""
        return any(subject == _OTHER for subject, _ in self.needs)

    def wants(self, against: Against | None) -> list[tuple[str, str]]:
        """The (subject, raw metric) it is made from when compared with `against`."""
        return [(against or "" if subject == _OTHER else subject, raw) for subject, raw in self.needs]

    def compared(self) -> "Metric":
        """The difference to another subject, of a metric that is measured on the candidate alone."""

        def of(*series: Series) -> Sample:
            return contrast(self.of(*series[: len(self.needs)]), self.of(*series[len(self.needs) :]))

        needs = (*self.needs, *((_OTHER, raw) for _, raw in self.needs))
        return Metric(of, needs, "difference", self.better, f"{self.meaning}; less the other's", neutral=0.0)

    def no_worse(self, margin: float) -> tuple[float | None, float | None]:
        """The bounds (at least, at most) of a candidate that is worse than the other by no more than `margin`.

        Worse is the other way than `better`; a ratio may be off by a share of 1, everything else by `margin` of its own unit.
        """
        if self.neutral is None:
            raise SpecError(
                "no difference, or which way is worse, has no number here, so it takes no margin; set at_least or at_most"
            )
        return (self.neutral - margin, None) if self.better == "higher" else (None, self.neutral + margin)

    def sample(self, scores: Scores, against: Against | None) -> Sample:
        """What is estimated.  Raises DataError where scores are missing, do not pair up, or count other tokens."""
        if self.by_token and against in scores.other_tokens:
            raise DataError(
                f"the {against} cuts texts into other tokens than the candidate does (their tokenizers differ), and this is "
                "counted by token; compare them by what is not, such as preference_accuracy, reward_win_rate or a suite"
            )
        if self.by_template and against in scores.other_texts:
            raise DataError(
                f"the {against} reads and writes in another chat template than the candidate, and this is counted by token of "
                "answers; compare them by what is not, such as preference_accuracy, reward_win_rate or a suite"
            )
        return self.of(*scores.aligned(*self.wants(against)))


def _margins(chosen: Series, rejected: Series) -> Floats:
    return difference(chosen.values, rejected.values)


def _preference(chosen: Series, rejected: Series, other_chosen: Series, other_rejected: Series) -> Floats:
    """The implicit reward of DPO, arXiv:2305.18290, up to the factor beta: does it rank the pair rightly?"""
    return shares(_margins(chosen, rejected) - _margins(other_chosen, other_rejected))


def _preference_accuracy(*series: Series) -> Sample:
    return mean(_preference(*series), series[0].clusters, support=_SHARE)


def _preference_gain(*series: Series) -> Sample:
    return mean(difference(_preference(*series[:4]), series[4].values), series[0].clusters, support=_GAIN)


def _reward_accuracy(chosen: Series, rejected: Series) -> Sample:
    return mean(shares(_margins(chosen, rejected)), chosen.clusters, support=_SHARE)


def _reward_gain(chosen: Series, rejected: Series, longer: Series) -> Sample:
    gain = difference(shares(_margins(chosen, rejected)), longer.values)
    return mean(gain, chosen.clusters, support=_GAIN)


def _share(series: Series) -> Sample:
    return mean(series.values, series.clusters, support=_SHARE)


def _wins(candidate: Series, other: Series) -> Sample:
    return mean(shares(difference(candidate.values, other.values)), candidate.clusters, support=_SHARE)


def _difference(candidate: Series, other: Series) -> Sample:
    return mean(difference(candidate.values, other.values), candidate.clusters)


def _length_ratio(candidate: Series, other: Series) -> Sample:
    return ratio(candidate.values, other.values, candidate.clusters, positive=True)


def _macro_f1(predicted: Series, true: Series) -> Sample:
    return macro_f1(predicted.values, true.values, predicted.clusters)


def _entity_f1(right: Series, predicted: Series, true: Series) -> Sample:
    return ratio(2 * right.values, predicted.values + true.values, right.clusters, support=_SHARE)


def _share_of(part: Series, whole: Series) -> Sample:
    return ratio(part.values, whole.values, part.clusters, support=_SHARE)


def _ratio_of(above: Series, below: Series) -> Sample:
    return ratio(above.values, below.values, above.clusters, positive=True)


def _perplexity(series: Series) -> Sample:
    return perplexity(series.values, series.weights, series.clusters)


def _perplexity_ratio(candidate: Series, other: Series) -> Sample:
    if not np.array_equal(candidate.weights, other.weights):
        raise DataError("the two models cut the same texts into different tokens, so their perplexities cannot be compared")
    return perplexity_ratio(candidate.values, other.values, candidate.weights, candidate.clusters)


def _own(series: Series) -> Sample:
    """A module's values; those that all lie in [0, 1] are taken for shares."""
    bounded = len(series.values) and series.values.min() >= 0 and series.values.max() <= 1
    return mean(series.values, series.clusters, support=_SHARE if bounded else None)


def _own_difference(candidate: Series, other: Series) -> Sample:
    both = np.concatenate([candidate.values, other.values])
    bounded = len(both) and both.min() >= 0 and both.max() <= 1
    return mean(difference(candidate.values, other.values), candidate.clusters, support=_GAIN if bounded else None)


_LOGPS = (("candidate", "chosen_logp"), ("candidate", "rejected_logp"), (_OTHER, "chosen_logp"), (_OTHER, "rejected_logp"))
_REWARDS = (("reward_model", "chosen_reward"), ("reward_model", "rejected_reward"))
_LONGER = (("length", "chosen_longer"),)

METRICS: dict[str, Metric] = {
    "preference_accuracy": Metric(
        _preference_accuracy, _LOGPS, "share of pairs", "higher",
        "held-out pairs whose chosen answer gained on the rejected one, relative to the reference; a tie counts half",
        neutral=0.5,
    ),
    "preference_gain_over_length": Metric(
        _preference_gain, (*_LOGPS, *_LONGER), "share of pairs", "higher",
        "preference_accuracy less what 'the longer answer wins' scores on the same pairs",
    ),
    "reward_accuracy": Metric(
        _reward_accuracy, _REWARDS, "share of pairs", "higher",
        "held-out pairs whose chosen answer the reward model scores higher; a tie counts half",
    ),
    "reward_gain_over_length": Metric(
        _reward_gain, (*_REWARDS, *_LONGER), "share of pairs", "higher",
        "reward_accuracy less what 'the longer answer wins' scores on the same pairs",
    ),
    "length_accuracy": Metric(
        _share, _LONGER, "share of pairs", "lower",
        "held-out pairs whose chosen answer is the longer one: the baseline that needs no model",
    ),
    "reward_win_rate": Metric(
        _wins, (("candidate", "reward"), (_OTHER, "reward")), "share of prompts", "higher",
        "prompts where the reward model prefers the candidate's answer; a tie counts half",
        neutral=0.5,
    ),
    "reward_difference": Metric(
        _difference, (("candidate", "reward"), (_OTHER, "reward")), "reward", "higher",
        "mean reward of the candidate's answers less the other's",
        neutral=0.0,
    ),
    "answer_perplexity": Metric(
        _perplexity, (("candidate", "answer_nll"),), "perplexity per token", "lower",
        "perplexity on the answers of held-out instructions",
    ),
    "answer_perplexity_ratio": Metric(
        _perplexity_ratio, (("candidate", "answer_nll"), (_OTHER, "answer_nll")), "ratio", "lower",
        "perplexity on held-out answers over the other's",
        neutral=1.0, by_token=True, by_template=True,
    ),
    "text_perplexity": Metric(
        _perplexity, (("candidate", "text_nll"),), "perplexity per token", "lower",
        "perplexity on general text",
    ),
    "text_perplexity_ratio": Metric(
        _perplexity_ratio, (("candidate", "text_nll"), (_OTHER, "text_nll")), "ratio", "lower",
        "perplexity on general text over the other's: above 1 is forgetting",
        neutral=1.0, by_token=True,
    ),
    "answer_length_ratio": Metric(
        _length_ratio, (("candidate", "answer_tokens"), (_OTHER, "answer_tokens")), "ratio", "lower",
        "tokens generated over the tokens that the other generated",
        neutral=1.0, by_token=True,
    ),
    "finished_rate": Metric(
        _share, (("candidate", "finished"),), "share of prompts", "higher",
        "answers that end by themselves before the limit",
    ),
    "macro_f1": Metric(
        _macro_f1, (("candidate", "label_predicted"), ("candidate", "label_true")), "mean of labels", "higher",
        "mean over labels of the F1 of each; a label that a sample neither holds nor is given is left out",
        differs=True,
    ),
    "entity_f1": Metric(
        _entity_f1,
        (("candidate", "entities_right"), ("candidate", "entities_predicted"), ("candidate", "entities_true")),
        "share of entities", "higher",
        "F1 over the entities of all items together: a span of BIO tags is right where its ends and its type are",
        differs=True,
    ),
    "tag_accuracy": Metric(
        _share_of, (("candidate", "tags_right"), ("candidate", "tags")), "share of tags", "higher",
        "tags that are right, of all items together",
        differs=True,
    ),
    "instruction_strict": Metric(
        _share_of, (("candidate", "followed_strict"), ("candidate", "instructions_strict")), "share of instructions", "higher",
        "verifiable instructions that are followed, of all prompts together",
        differs=True,
    ),
    "instruction_loose": Metric(
        _share_of, (("candidate", "followed_loose"), ("candidate", "instructions_loose")), "share of instructions", "higher",
        "the same, where Markdown's stars, an opening line and a closing line are forgiven",
        differs=True,
    ),
    "verbosity": Metric(
        _ratio_of, (("candidate", "answer_words"), ("candidate", "reference_words")), "ratio", "lower",
        "words of all answers over words of all references",
        differs=True,
    ),
}  # fmt: skip
RAW = frozenset(raw for metric in METRICS.values() for _, raw in metric.needs) | {CUT}
"""names of raw scores: no module may take one"""


def metric(name: str, against: Against | None) -> Metric:
    """The metric `name`: a row of METRICS, a module, or `<suite>.<metric>`.  Raises SpecError, with the nearest names, else."""
    if inside := suite.split(name):
        return _of_harness(name, against) if inside[0] == harness.PREFIX else _of_suite(*inside, against)
    if name in METRICS:
        return METRICS[name].compared() if against and METRICS[name].differs else METRICS[name]
    own = modules.names()
    if name not in own:
        raise SpecError(f"{name}: no such metric{modules.nearest(name, [*METRICS, *own])}")
    return _own_metric(name, against)


def _own_metric(name: str, against: Against | None) -> Metric:
    """The mean of a module's values, or its difference to another's."""
    if against:
        needs = (("candidate", name), (_OTHER, name))
        return Metric(_own_difference, needs, "difference", "higher", f"mean {name} less the other's")
    return Metric(_own, (("candidate", name),), "mean", "higher", f"mean {name}")


def _of_suite(name: str, inner: str, against: Against | None) -> Metric:
    """Metric `inner` of the suite `name`, made from raw scores that are named after the suite.  Raises SpecError."""
    about = suite.suite(name)
    able = about.may_measure()
    if inner not in able:
        raise SpecError(f"{name}.{inner}: the suite has no such metric{modules.nearest(inner, able)}")
    if raw := {suite.JUDGED: suite.WINS, suite.AGREED: suite.AGREED}.get(inner):
        meaning = "answers that the judge prefers to the other's; a tie counts half" if raw == suite.WINS else "orders that agree"
        found = Metric(
            _share, ((_OTHER, raw),), "share of prompts", "higher", meaning, neutral=0.5 if raw == suite.WINS else None
        )
    elif inner in suite.CHOICES:
        found = _own_metric(inner, against)
    else:
        found = metric(inner, against)
    needs = tuple((subject, f"{name}.{raw}") for subject, raw in found.needs)
    better = about.metrics.get(inner, found.better)
    if against and found.of is _own_difference and inner in about.metrics:  # the suite says which way is worse
        found = replace(found, neutral=0.0)
    return replace(found, needs=needs, better=better, meaning=f"{found.meaning}; suite {name}, version {about.version}")


def _of_harness(name: str, against: Against | None) -> Metric:
    """Metric `name` of a task of lm-eval, as `evals.harness` calls it.  Raises SpecError for one that is not called so."""
    if not harness.is_one(name):
        raise SpecError(f"{name}: no metric of lm-eval; it is called lm_eval.<task>.<metric>, such as lm_eval.arc_easy.acc")
    if of := harness.counted_by(name):
        like = METRICS["text_perplexity_ratio" if against else "text_perplexity"]
        needs = tuple((subject, name) for subject, _ in like.needs)
        unit = like.unit if against else f"perplexity per {of}"
        return replace(like, needs=needs, unit=unit, by_token=False, meaning="perplexity by lm-eval")
    found, up = _own_metric(name, against), harness.higher_is_better(name)
    neutral = 0.0 if against and up is not None else None
    return replace(found, better="lower" if up is False else "higher", neutral=neutral, meaning=f"{found.meaning}; lm-eval")


def measurable(scores: Scores) -> list[tuple[str, Against | None]]:
    """Every (metric, comparator) that `scores` have the raw scores for."""
    raw = scores.metrics()
    own = [name for name in raw if name not in RAW and name in modules.names()]
    suites = sorted({inside[0] for inside in map(suite.split, raw) if inside} & set(suite.names()))
    inside = [f"{name}.{inner}" for name in suites for inner in suite.suite(name).may_measure()]
    found: list[tuple[str, Against | None]] = []
    foreign = [name for name in raw if harness.is_one(name)]
    for name in [*METRICS, *own, *inside, *foreign]:
        for against in (None, *COMPARATORS):
            found_metric = metric(name, against)
            fits = found_metric.comparative == (against is not None)
            if fits and all(scores.has(*wanted) for wanted in found_metric.wants(against)):
                found.append((name, against))
    return found
