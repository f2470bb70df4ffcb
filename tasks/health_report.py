"""The health card of a reward model for people.  It reads the dict of `health.json` and decides nothing."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from evals.gates import percent, shown

Row: TypeAlias = Mapping[str, Any]
_COLUMNS = (
    "scores of",
    "n",
    "mean",
    "deviation",
    "min",
    "5%",
    "25%",
    "50%",
    "75%",
    "95%",
    "max",
    "most frequent number",
    "no numbers",
)


def markdown(card: Row) -> str:
    """The verdict and its reasons, the bounds, then everything that was measured."""
    healthy = card["verdict"] == "healthy"
    parts = [
        "# ✅ healthy: a policy may learn from this reward model" if healthy else "# ❌ weak: no policy should learn from it"
    ]
    if card["reasons"]:
        parts.append("\n".join(f"- {reason}" for reason in card["reasons"]))
    parts += [_estimates(card), *_reliability(card), "## Scores", _scores(card["scores"]), *_agreement(card["agreement"])]
    parts.append(
        f"Length alone takes the {card['length_prefers']} answer, by characters.  Intervals at {percent(card['level'])}: of "
        f"shares and errors BCa bootstrap by conversation, {card['resamples']} resamples, seed {card['seed']}; of correlations "
        "Fisher's z (Bonett and Wright 2000); of the slope from the likelihood, robust to conversations."
    )
    return "\n\n".join(parts) + "\n"


def _estimates(card: Row) -> str:
    held = {check["check"]: check for check in card["checks"]}
    rows: list[Sequence[str]] = []
    for name, found in card["estimates"].items():
        check = held.get(name)
        mark, need = ("✅" if check["holds"] else "❌", check["need"]) if check else ("", "")
        if found is None:
            rows.append((mark, name, need, "-", "-", "-", "-"))
            continue
        interval = f"[{shown(found['low'])}, {shown(found['high'])}]"
        effect = "?" if found["smallest_effect"] is None else f"{found['smallest_effect']:.3g}"
        rows.append((mark, name, need, shown(found["value"]), interval, str(found["items"]), effect))
    return _table(("", "what", "need", "found", "interval", "n", "smallest effect"), rows)


def _reliability(card: Row) -> list[str]:
    if not card["reliability"]:
        return []
    slope = card["estimates"].get("slope")
    said = "P(chosen is better) = sigmoid(score of chosen less score of rejected); pairs of like margin together."
    if slope and slope["value"] is not None and slope["value"] > 0:
        times = slope["value"]
        apart = f"{shown(1 / times)} times too far apart" if times < 1 else f"{shown(times)} times too close together"
        said += (
            f"  For that the scores lie {apart} (slope {shown(times)}, temperature {shown(1 / times)}); scale is normalised away."
        )
    rows = [(str(one["pairs"]), shown(one["confidence"]), shown(one["right"])) for one in card["reliability"]]
    return ["## Reliability", said, _table(("pairs", "says it is right on", "is right on"), rows)]


def _scores(scores: Row) -> str:
    rows: list[Sequence[str]] = []
    for name, about in scores.items():
        numbers = ["-"] * 9
        if "mean" in about:
            found = (about["mean"], about["std"], about["min"], *about["quantiles"].values(), about["max"])
            numbers = [*(shown(number) for number in found), percent(about["same"])]
        label = "answers of the SFT policy" if name == "answers" else name
        rows.append((label, str(about["count"]), *numbers, str(about["not_numbers"])))
    return _table(_COLUMNS, rows)


def _agreement(agreement: Row) -> list[str]:
    tokenizer = (
        "the policy's tokenizer" if agreement["tokenizer"] else "a tokenizer of its own, so texts are tokenised again for it"
    )
    template = (
        "the policy's chat template" if agreement["template"] else "a chat template of its own, in which it sees every text"
    )
    base = "the policy's base" if agreement["base"] else "another base than the policy's"
    return ["## Agreement with the policy", f"It stands on {base} and reads with {tokenizer}, in {template}."]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows))
