# pyright: basic
"""How often gates promote what they should not, and find what is there: simulated gates, judged by the code of the real ones.

python -m tests.bench.calibration [false] [several] [power] [--gates 1000]     the tables of docs/calibration.md

In every case the truth lies exactly on the bound, so each pass is a false promotion.  At level 0.95 an interval may end on the
wrong side of the truth 2.5 % of the time at each end; a gate bounds one end.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.gates import Gate, judge
from evals.scores import Scores, Series
from evals.statistics import Sample, contrast, difference, macro_f1, mean, perplexity, perplexity_ratio, ratio
from tasks.core.errors import DataError

LEVEL = 0.95
SIZES = (10, 20, 40, 80, 300)
RESAMPLES = 399
"""Monte Carlo p-values are valid at any number; more of them make gates a little surer of what is there"""
ALLOWED = 0.05


@dataclass(frozen=True)
class Case:
    """Data whose true quantity is known."""

    of: Callable[[np.random.Generator, int, float], Sample]
    """generator, conversations, effect -> what is estimated; at effect 0 its truth is `truth`"""
    truth: float
    effect: float = 0.0


def _names(n: int) -> np.ndarray:
    return np.array([f"{i:05d}" for i in range(n)])


def _wins(ties: float) -> Callable[..., Sample]:
    def of(rng: Any, n: int, effect: float) -> Sample:
        part = (1 - ties) / 2
        return mean(rng.choice([0.0, 0.5, 1.0], n, p=[part - effect, ties, part + effect]), _names(n), support=(0, 1))

    return of


def _paired_binary(share: float, same: float) -> Callable[..., Sample]:
    """Two models right `share` of the time, of one mind on `same` of the items."""

    def of(rng: Any, n: int, effect: float) -> Sample:
        shared, one, other = (rng.random(n) < p for p in (share, share + effect, share))
        alike = rng.random(n) < same
        values = (np.where(alike, shared, draw).astype(float) for draw in (one, other))
        return mean(difference(*values), _names(n), support=(-1, 1))

    return of


def _discordant(won: float, lost: float) -> Callable[..., Sample]:
    return lambda rng, n, effect: mean(
        rng.choice([-1.0, 0.0, 1.0], n, p=[lost - effect / 2, 1 - won - lost, won + effect / 2]), _names(n), support=(-1, 1)
    )


def _unbounded(draw: Callable[[Any, int], Any]) -> Callable[..., Sample]:
    return lambda rng, n, effect: mean(draw(rng, n) + effect, _names(n))


def _share(p: float) -> Callable[..., Sample]:
    return lambda rng, n, effect: mean((rng.random(n) < p + effect).astype(float), _names(n), support=(0, 1))


def _perplexities(drift: float) -> Callable[..., Sample]:
    """Two models on the same texts of very different lengths; `drift`: nats per token that the candidate is worse."""

    def of(rng: Any, n: int, effect: float) -> Sample:
        tokens = np.ceil(rng.lognormal(4, 1, n))
        hard = rng.gamma(9, 0.3, n)
        one, other = (hard + rng.normal(0, 0.15, n) for _ in range(2))
        return perplexity_ratio(one + drift - effect, other, tokens, _names(n))

    return of


def _lengths(rng: Any, n: int, effect: float) -> Sample:
    one, other = (np.ceil(rng.lognormal(3.5, 0.8, n)) for _ in range(2))
    return ratio(one * (1 - effect), other, _names(n), positive=True)


def _perplexity(rng: Any, n: int, effect: float) -> Sample:
    return perplexity(rng.gamma(9, 0.3, n) - effect, np.ceil(rng.lognormal(4, 0.5, n)), _names(n))


def _macro(rng: Any, n: int, effect: float) -> Sample:
    true = rng.choice(3, n, p=[0.6, 0.3, 0.1]).astype(float)
    guesses = (np.where(rng.random(n) < 0.7 + gain, true, rng.integers(0, 3, n)).astype(float) for gain in (effect, 0.0))
    one, other = (macro_f1(guess, true, _names(n)) for guess in guesses)
    return contrast(one, other)


def _sizes(rng: Any, n: int) -> np.ndarray:
    """Items of each conversation: most have one or two, a few have dozens."""
    return np.ceil(rng.lognormal(0, 1.2, n)).astype(int)


def _clustered(rng: Any, n: int, effect: float, *, share: float = 0.5) -> Sample:
    sizes = _sizes(rng, n)
    p = np.repeat(rng.beta(share, 1 - share, n), sizes)
    return mean((rng.random(len(p)) < p + effect).astype(float), np.repeat(_names(n), sizes), support=(0, 1))


def _clustered_rewards(rng: Any, n: int, effect: float) -> Sample:
    sizes = _sizes(rng, n)
    own = np.repeat(rng.normal(size=n), sizes)
    return mean(own + rng.normal(size=len(own)) + effect, np.repeat(_names(n), sizes))


CASES: dict[str, Case] = {
    "win rate, no ties": Case(_wins(0.0), 0.5),
    "win rate, 40 % ties": Case(_wins(0.4), 0.5),
    "win rate, 90 % ties": Case(_wins(0.9), 0.5),
    "right or wrong, paired, 80 %": Case(_paired_binary(0.8, 0.5), 0.0),
    "right or wrong, paired, 98 %": Case(_paired_binary(0.98, 0.5), 0.0),
    "reward difference, normal": Case(_unbounded(lambda rng, n: rng.normal(size=n)), 0.0),
    "reward difference, heavy tails (t, 3 df)": Case(_unbounded(lambda rng, n: rng.standard_t(3, n)), 0.0),
    "reward difference, 70 % ties": Case(_unbounded(lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.3)), 0.0),
    "perplexity ratio, texts of all lengths": Case(_perplexities(0.0), 1.0),
    "length ratio, log-normal lengths": Case(_lengths, 1.0),
    "difference in macro F1, three labels": Case(_macro, 0.0),
    "win rate in conversations of all sizes": Case(_clustered, 0.5),
    "reward difference in such conversations": Case(_clustered_rewards, 0.0),
    "no worse by 0.02, paired, few differ": Case(_discordant(0.01, 0.03), -0.02),
    "no worse by 2 %, perplexity ratio": Case(_perplexities(float(np.log(1.02))), 1.02),
    "share of 50 %": Case(_share(0.5), 0.5),
    "share of 90 %": Case(_share(0.9), 0.9),
    "share of 98 %": Case(_share(0.98), 0.98),
    "share of 90 % in conversations of all sizes": Case(lambda *a: _clustered(*a, share=0.9), 0.9),
    "scores in [0, 1], most near 0": Case(lambda rng, n, _: mean(rng.random(n) ** 4, _names(n), support=(0, 1)), 0.2),
    "perplexity": Case(_perplexity, float(np.exp(2.7))),
    "mean of an exponential": Case(_unbounded(lambda rng, n: rng.exponential(size=n)), 1.0),
    "mean of a log-normal (sigma 1)": Case(_unbounded(lambda rng, n: rng.lognormal(0, 1, n)), float(np.exp(0.5))),
    "mean of 85 % zeros": Case(_unbounded(lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.15)), 0.15),
}


def false_promotions(case: Case, n: int, gates: int, seed: int = 0) -> tuple[float, float]:
    """How often a gate that demands at least the truth passes, and one that demands at most the truth."""
    rng, bound = np.random.default_rng([seed, n]), case.truth
    passed = np.zeros(2)
    for i in range(gates):
        try:
            spread = case.of(rng, n, 0.0).spread(seed=i, resamples=RESAMPLES)
        except DataError:  # what cannot be estimated stops a real run: that promotes nothing
            continue
        passed += [2 * spread.p_above(bound) <= 1 - LEVEL + 1e-12, 2 * spread.p_below(bound) <= 1 - LEVEL + 1e-12]
    low, high = passed / gates
    return float(low), float(high)


def _scores(rng: Any, n: int, better: float) -> Scores:
    """Raw scores of candidate and parent; `better`: standard errors by which half of the metrics truly are."""
    names, gain = _names(n), better / n**0.5
    hard, tokens = rng.gamma(9, 0.3, n), np.ceil(rng.lognormal(4, 0.7, n))
    raw: dict[tuple[str, str], Any] = {}
    for who, more in (("candidate", gain), ("parent", 0.0)):
        raw[who, "reward"] = rng.normal(size=n) * 0.7 + more
        raw[who, "answer_nll"] = hard + 0.1 * rng.normal(size=n) - 0.2 * more
        raw[who, "text_nll"] = hard + 0.1 * rng.normal(size=n)
        raw[who, "answer_tokens"] = tokens * rng.lognormal(0, 0.4, n)
    weights = {"answer_nll": tokens, "text_nll": tokens}
    return Scores({key: Series(names, names, values, weights.get(key[1], np.ones(n))) for key, values in raw.items()})


SEVERAL = (
    Gate(metric="reward_win_rate", at_least=0.5),
    Gate(metric="reward_difference", at_least=0.0),
    Gate(metric="answer_perplexity_ratio", at_most=1.0),
    Gate(metric="text_perplexity_ratio", at_most=1.0),
    Gate(metric="answer_length_ratio", at_most=1.0),
)
TRUE_NULLS = ("text_perplexity_ratio", "answer_length_ratio")


def several(n: int, plans: int, better: float, seed: int = 0) -> dict[str, float]:
    """Shares of plans with five gates: any false pass, all passed, and passes per gate that truly holds, by both corrections."""
    rng = np.random.default_rng([seed, n, round(better * 10)])
    counts = dict.fromkeys(("any false pass", "all pass", "found by Holm", "found by Bonferroni"), 0.0)
    for i in range(plans):
        judged = judge(SEVERAL, _scores(rng, n, better), seed=i, resamples=RESAMPLES)
        said = {j.gate.metric: j for j in judged}
        nulls = TRUE_NULLS if better else tuple(said)
        counts["any false pass"] += any(said[name].verdict == "pass" for name in nulls)
        counts["all pass"] += all(j.verdict == "pass" for j in judged)
        holds = [j for name, j in said.items() if name not in nulls]
        counts["found by Holm"] += sum(j.verdict == "pass" for j in holds) / (len(holds) or 1)
        counts["found by Bonferroni"] += sum(j.p <= (1 - LEVEL) / len(SEVERAL) for j in holds) / (len(holds) or 1)
    return {name: count / plans for name, count in counts.items()}


POWER = {
    "win rate, no ties": (0.05, 0.1, 0.2),
    "win rate, 40 % ties": (0.05, 0.1, 0.2),
    "right or wrong, paired, 80 %": (0.05, 0.1, 0.15),
    "reward difference, normal": (0.2, 0.5, 1.0),
    "perplexity ratio, texts of all lengths": (0.02, 0.05, 0.1),
    "no worse by 0.02, paired, few differ": (0.01, 0.02, 0.04),
}
"""case -> effects: towards passing, in shares, standard deviations, or nats per token"""
PASSES_BELOW = ("perplexity ratio, texts of all lengths",)


def power(name: str, n: int, effect: float, gates: int, seed: int = 0) -> tuple[float, float]:
    """How often the gate passes, and the mean smallest effect that its samples claim."""
    case, rng = CASES[name], np.random.default_rng([seed, n, 1])
    below, passed, claimed = name in PASSES_BELOW, 0, 0.0
    for i in range(gates):
        found = case.of(rng, n, effect).spread(seed=i, resamples=RESAMPLES).estimate(LEVEL)
        passed += found.high <= case.truth if below else found.low >= case.truth
        claimed += found.smallest_effect("high" if below else "low")
    return passed / gates, claimed / gates


EFFECTS = ("win rate, 40 % ties", "share of 50 %", "reward difference, normal", "reward difference in such conversations")
"""whose unit is that of the smallest effect"""


def at_the_smallest_effect(name: str, n: int, gates: int) -> tuple[float, float]:
    """(the smallest effect that samples claim where it is the truth, how often the gate then passes)."""
    effect = power(name, n, 0.0, 100)[1]
    for i in range(4):
        effect = power(name, n, effect, 100, seed=2 + i)[1]
    return effect, power(name, n, effect, gates, seed=1)[0]


def _line(cells: list[str]) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def _table(head: list[str], rows: list[list[str]], end: str = "\n") -> None:
    for cells in (head, ["---"] * len(head), *rows):
        _line(cells)
    sys.stdout.write(end)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def main() -> None:
    """Print the tables that were asked for."""
    options = argparse.ArgumentParser()
    options.add_argument("what", nargs="*", default=["false", "several", "power"])
    options.add_argument("--gates", type=int, default=1000)
    asked = options.parse_args()
    started = time.perf_counter()
    if "false" in asked.what:
        _table(["at least / at most, % passed", *(f"n={n}" for n in SIZES)], [], end="")
        worst = 0.0
        for name, case in CASES.items():
            found = [false_promotions(case, n, asked.gates // (4 if n == SIZES[-1] else 1)) for n in SIZES]
            worst = max(worst, *(max(pair) for pair in found))
            _line([name, *(f"{_percent(low)} / {_percent(high)}" for low, high in found)])
        slack = 3 * (ALLOWED * (1 - ALLOWED) / asked.gates) ** 0.5
        sys.stdout.write(
            f"largest: {_percent(worst)} % of {asked.gates}, allowed {_percent(ALLOWED)} % + {_percent(slack)} %\n\n"
        )
    if "several" in asked.what:
        rows = []
        for better in (0.0, 3.0, 5.0):
            for n in (20, 80):
                found = several(n, max(200, asked.gates // 2), better)
                rows.append(["5 of 5" if not better else "2 of 5", f"{better:g}", str(n), *map(_percent, found.values())])
        head = ["gates on their bound", "effect of the others, standard errors", "n"]
        _table([*head, "any false pass, %", "all pass, %", "found by Holm, %", "found by Bonferroni, %"], rows)
    if "power" in asked.what:
        sizes = (20, 80, 300)
        rows = [
            [name, f"{effect:g}", *(_percent(power(name, n, effect, asked.gates // 4)[0]) for n in sizes)]
            for name, effects in POWER.items()
            for effect in effects
        ]
        _table(["passed, %", "effect", *(f"n={n}" for n in sizes)], rows)
        rows = []
        for name in EFFECTS:
            for n in sizes:
                effect, seen = at_the_smallest_effect(name, n, asked.gates // 2)
                rows.append([name, str(n), f"{effect:.3f}", _percent(seen)])
        _table(["at its own smallest effect", "n", "smallest effect", "passed, %"], rows)
    sys.stdout.write(f"{time.perf_counter() - started:.0f} s\n")


if __name__ == "__main__":
    main()
