"""An artifact as a person reads it: markdown for the UI, rows for a table."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from tasks.core.spec import Json
from tasks.core.store import Artifact
from tasks.training_plot import caption, picture, rows_of

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
    lines += training(artifact.path)
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
    for file in folder.glob("*.png"):
        text = text.replace(f"]({file.name})", f"](data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()})")
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


def training(folder: Path) -> list[str]:
    """Lines of markdown with the picture of the training whose curve is in `folder`; none where there is nothing to draw."""
    rows = rows_of(folder)
    drawn = picture(rows)
    if drawn is None:
        return []
    return [f"![training](data:image/png;base64,{base64.b64encode(drawn).decode()})", "", caption(rows), ""]


_WATCHED = {
    "reward": "reward", "kl": "kl", "answer_tokens": "tokens", "finished": "finished", "loss": "loss", "value_loss": "value loss",
    "entropy": "entropy", "rewards/margins": "margin", "margin": "margin", "accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
}  # fmt: skip
"""what a running stage reports -> its name; these come first, in this order"""
_UNWATCHED = (
    "grad_norm", "learning_rate", "mean_token_accuracy", "iteration", "answers", "reward_std", "value_grad_norm",
    "ratio_start", "skipped", "policy_loss", "approx_kl",
)  # fmt: skip
"""in the curve and the plots, but too much for a line"""


def watched(values: Mapping[str, float], most: int | None = None) -> str:
    """The numbers of a running stage in a line, `most` of them, those that say how it goes first.

    >>> watched({"loss": 0.5, "grad_norm": 1.0, "iteration": 3.0, "kl": 0.123456, "reward": 1.0})
    'reward 1  kl 0.1235  loss 0.5'
    """
    first = [name for name in _WATCHED if name in values and (name != "entropy" or "reward" in values)]
    rest = [name for name in values if name not in (*_WATCHED, *_UNWATCHED)]
    return "  ".join(f"{_WATCHED.get(name, name)} {values[name]:.4g}" for name in (*first, *rest)[:most])


def _cell(name: str, value: Json) -> str:
    return sized(value) if name.endswith("bytes") and isinstance(value, int) else shown(value)


def sized(bytes_: int | None) -> str:
    """Memory, or a file, as people say it.

    >>> [sized(size) for size in (None, 90_000, 3_000_000, 2_720_464_896)]
    ['-', '88 KiB', '2.9 MiB', '2.53 GiB']
    """
    if bytes_ is None:
        return "-"
    if bytes_ < 2**20:
        return f"{bytes_ / 2**10:,.0f} KiB"
    return f"{bytes_ / 2**30:,.2f} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:,.1f} MiB"


def duration(seconds: float | None) -> str:
    """Seconds as people say them.

    >>> [duration(s) for s in (None, 0.04, 7.25, 130, 7300)]
    ['-', '0.0 s', '7.2 s', '2 m 10 s', '2 h 01 m']
    """
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} m"


_ROWS = "{rows_kept} of {rows_in} rows kept, {rows_quarantined} in quarantine"
_HEADLINES = {
    "base": "{parameters} parameters",
    "reward-model": "{parameters} parameters",
    "curate-instructions": _ROWS,
    "curate-preferences": _ROWS,
    "curate-feedback": _ROWS + "; {liked_to_train_on} liked and {disliked_to_train_on} not",
    "curate-prompts": _ROWS,
    "curate-texts": _ROWS,
    "curate-labelled": _ROWS,
    "curate-pairs": _ROWS,
    "pairing": "{pairs} pairs of {prompts} prompts; reward {mean_reward}, chosen {chosen_reward}, rejected {rejected_reward}",
    "judging": "{judged} answers judged, {unread} without a score, mean {mean}",
    "sft": "loss {first_loss} -> {last_loss} in {steps} steps, held out {heldout_loss}",
    "reward": "right on {heldout_accuracy} of held-out pairs (the longer answer wins: {heldout_length_baseline})",
    "dpo": "loss {first_loss} -> {last_loss} in {steps} steps",
    "kto": "loss {first_loss} -> {last_loss} in {steps} steps, {liked} liked and {disliked} disliked answers",
    "orpo": "loss {first_loss} -> {last_loss} in {steps} steps",
    "grpo": "reward {first_reward} -> {last_reward} in {iterations} iterations, KL {last_kl} nats per token",
    "rloo": "reward {first_reward} -> {last_reward} in {iterations} iterations, KL {last_kl} nats per token",
    "ppo": "reward {first_reward} -> {last_reward} in {iterations} iterations, KL {last_kl} nats per answer",
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
