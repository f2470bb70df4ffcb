"""An artifact as a person reads it: markdown for the UI, rows for a table."""

import json

from tasks.core.spec import Json
from tasks.core.store import Artifact

_TEXTS = ("gates.md", "report.md", "README.md")
"""what a stage wrote for people; the first that is there leads the page"""


def summary(artifact: Artifact, *, built: bool) -> str:
    """One page of markdown: what the stage says, its numbers, and where it came from."""
    lines = [f"# {artifact.stage}", ""]
    for name in _TEXTS:
        if (artifact.path / name).exists():
            text = (artifact.path / name).read_text(encoding="utf-8")
            lines = [text.partition("---\n")[2].partition("---\n")[2] if text.startswith("---\n") else text, ""]
            break
    lines += ["| metric | value |", "|---|---|"]
    lines += [f"| {name} | {shown(value)} |" for name, value in artifact.metrics.items() if not isinstance(value, dict | list)]
    seconds = artifact.provenance["seconds"]
    how = "built now" if built else "from the store"
    lines += ["", f"`{artifact.kind}/{artifact.key}`, {how}; built {artifact.created} in {seconds} s."]
    return "\n".join(lines)


def table(artifact: Artifact) -> list[dict[str, Json]]:
    """The gates of a verdict as rows for a table; nothing for other kinds."""
    if artifact.kind != "verdict":
        return []
    from evals.report import rows

    return [dict[str, Json](row) for row in rows(json.loads((artifact.path / "verdict.json").read_text(encoding="utf-8")))]


_ROWS = "{rows_kept} of {rows_in} rows kept, {rows_quarantined} in quarantine"
_HEADLINES = {
    "base": "{parameters} parameters",
    "curate-instructions": _ROWS,
    "curate-preferences": _ROWS,
    "curate-prompts": _ROWS,
    "curate-texts": _ROWS,
    "sft": "loss {first_loss} -> {last_loss} in {steps} steps, held out {heldout_loss}",
    "reward": "right on {heldout_accuracy} of held-out pairs (the longer answer wins: {heldout_length_baseline})",
    "dpo": "loss {first_loss} -> {last_loss} in {steps} steps",
    "merge": "largest logit distance {max_logit_distance}",
    "answers": "{answers} answers, {tokens} tokens, {finished} ended by themselves",
    "scores": "nats per token: answers {answer_nll}, general text {text_nll}",
    "verdict": "{verdict}: {gates} gates",
    "release": "verdict {verdict}",
}
"""stage -> the numbers worth a line"""


def headline(artifact: Artifact) -> str:
    """The one line a terminal shows for a finished stage."""
    numbers = {name: shown(value) for name, value in artifact.metrics.items() if not isinstance(value, dict | list)}
    try:
        return _HEADLINES[artifact.stage].format_map(numbers)
    except KeyError:  # another stage, or one that measured less
        return "  ".join(f"{name} {value}" for name, value in list(numbers.items())[:3])


def shown(value: Json) -> str:
    """A number as a person writes it.

    >>> shown(0.123456), shown(1234567), shown(None)
    ('0.1235', '1,234,567', '-')
    """
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
        case _:
            return str(value)
