"""An artifact as a person reads it: markdown for the UI, rows for a table."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.core.spec import Json
from tasks.core.store import Artifact

_TEXTS = ("gates.md", "health.md", "comparison.md", "search.md", "report.md", "README.md")
"""what a stage wrote for people; the first that is there leads the page"""


def summary(artifact: Artifact, *, built: bool, about: str = "") -> str:
    """One page of markdown: what the stage says, its curve and numbers, and where it came from.  `about`: what it does."""
    lines = [f"# {artifact.stage}", "", about, ""]
    for name in _TEXTS:
        if (artifact.path / name).exists():
            text = (artifact.path / name).read_text(encoding="utf-8")
            lines = [text.partition("---\n")[2].partition("---\n")[2] if text.startswith("---\n") else text, ""]
            lines[0] = _with_pictures(lines[0], artifact.path)
            break
    if (curve := artifact.path / _CURVE).exists():
        lines += [*_plot(json.loads(curve.read_text(encoding="utf-8"))), ""]
    lines += ["| metric | value |", "|---|---:|"]
    lines += [
        f"| {name} | {_cell(name, value)} |" for name, value in artifact.metrics.items() if not isinstance(value, dict | list)
    ]
    seconds = f"{artifact.provenance['seconds']:,.1f}"
    how = "built in this run" if built else "from the store"
    when = artifact.created[:16].replace("T", " ")
    key = artifact.key[:12]
    lines += ["", f"`{artifact.kind}/{key}`, {how}; made {when} UTC in {seconds} s.  All of it: `align show {key}`"]
    return "\n".join(lines)


def _with_pictures(text: str, folder: Path) -> str:
    """`text` with the PNGs of `folder` that it shows inside it: a page asks no other address for anything."""
    for picture in folder.glob("*.png"):
        text = text.replace(f"]({picture.name})", f"](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})")
    return text


def table(artifact: Artifact) -> list[dict[str, Json]]:
    """The gates of a verdict, or the methods of a comparison, as rows for a table; nothing for other kinds."""
    if artifact.kind == "comparison":
        from tasks.compare_report import rows as methods

        return [{**row} for row in methods(json.loads((artifact.path / "comparison.json").read_text(encoding="utf-8")))]
    if artifact.kind != "verdict":
        return []
    from evals.report import rows

    verdict = json.loads((artifact.path / "verdict.json").read_text(encoding="utf-8"))
    found: list[dict[str, Json]] = []
    for gate, row in zip(verdict["gates"], rows(verdict), strict=True):
        found.append({"verdict": f"{row.pop('')} {gate['verdict']}", **row})  # the UI shows no column without a name
    return found


_CURVE = "training.json"
_POINTS = 200
"""of a plotted curve; more cannot be told apart"""


def _plot(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """The loss over the steps, as a picture inside the markdown: pages ask no other address for anything."""
    points = [(step["step"], step["loss"]) for step in steps if math.isfinite(step.get("loss", math.nan))]
    if len(points) < 2:
        return []
    points = [*points[:: math.ceil(len(points) / _POINTS)], points[-1]]
    width, height = 640, 160
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    first, last = points[0][0], points[-1][0]
    line = " ".join(
        f"{width * (step - first) / (last - first):.1f},{8 + (height - 16) * (high - loss) / ((high - low) or 1):.1f}"
        for step, loss in points
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<rect width="{width}" height="{height}" fill="#8882"/>'
        f'<polyline points="{line}" fill="none" stroke="#3b82f6" stroke-width="2"/></svg>'
    )
    picture = f"![loss over the steps](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"
    return [picture, "", f"Loss of steps {first} to {last}, between {shown(low)} and {shown(high)}."]


def _cell(name: str, value: Json) -> str:
    if name.endswith("bytes") and isinstance(value, int):
        return f"{value / 2**20:,.1f} MiB"
    return shown(value)


_ROWS = "{rows_kept} of {rows_in} rows kept, {rows_quarantined} in quarantine"
_HEADLINES = {
    "base": "{parameters} parameters",
    "curate-instructions": _ROWS,
    "curate-preferences": _ROWS,
    "curate-feedback": _ROWS + "; {liked_to_train_on} liked and {disliked_to_train_on} not",
    "curate-prompts": _ROWS,
    "curate-texts": _ROWS,
    "curate-labelled": _ROWS,
    "sft": "loss {first_loss} -> {last_loss} in {steps} steps, held out {heldout_loss}",
    "reward": "right on {heldout_accuracy} of held-out pairs (the longer answer wins: {heldout_length_baseline})",
    "dpo": "loss {first_loss} -> {last_loss} in {steps} steps",
    "compose": "{parts} adapters by {how}, rank {rank}: largest logit distance from their sum {max_logit_distance}",
    "replay": "{own} rows of this task and {replayed} of earlier ones",
    "forgetting": "nats per token: average forgetting {average_forgetting}, final loss {final_loss}",
    "task": "loss {first_loss} -> {last_loss} in {steps} steps, held out {heldout_loss}",
    "merge": "largest logit distance {max_logit_distance}",
    "answers": "{answers} answers, {tokens} tokens, share that ended by itself {finished}",
    "scores": "nats per token: answers {answer_nll}, general text {text_nll}",
    "rewards": "held-out pairs: chosen {chosen_reward/reward_model}, rejected {rejected_reward/reward_model}",
    "profile": "per token {decode_seconds/base} s as the base, {decode_seconds/unmerged} s as trained",
    "comparison": "{methods} methods, {failed} with gaps; best on held-out answers: {best_answers}",
    "pretrain": "loss {first_loss} -> {last_loss} in {steps} steps, rows {packed_full} full",
    "health": "{verdict}: right on {accuracy} of {pairs} held-out pairs (length alone: {length_accuracy})",
    "clearance": "scores of the SFT policy's {answers} answers: mean {mean}, deviation {std}",
    "search": "{winner} of {trials} trials, {value} against the plan's own {own}",
    "verdict": "{verdict}: {pass} of {gates} gates hold",
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
