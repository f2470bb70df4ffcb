"""What a person is shown before deciding: one page of Markdown over the artifacts that a release would be made of.

Every text of data or of a model goes through `inert`: an answer must not be able to draw a table, load a picture or fake a
verdict.  Pictures are data URIs, so that the page asks no other address for anything.
"""

import base64
import json
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.estimates import metric
from evals.report import challenge, rows
from evals.scores import CHAMPION, Scores
from tasks.charts import SAID, gate_chart
from tasks.core.errors import AlignError
from tasks.core.lineage import Trace, trace_among
from tasks.core.spec import Json, differences
from tasks.core.store import Artifact, Store
from tasks.judge import VERDICT_FILE
from tasks.present import training
from tasks.release import outline
from tasks.released import release_record
from tasks.review import Subject, inert
from tasks.tables import ANSWERS_FILE, answer_item, read_rows

SAMPLES = 10
"""wins, and losses"""
MOST_BYTES = 500_000
"""of a page: it is kept in Prefect's database, and shown in a form"""
_PROMPT, _ANSWER = 400, 700
"""characters of a prompt and of an answer that are shown"""
_DATA = ("instructions", "preferences", "feedback", "prompts", "texts", "labelled")
_COLUMN = 20
"""characters on a line of a table with two columns, so that both are seen in the form, on a phone too"""
_GATE = 24
"""the same where the other column holds only numbers"""
_LINES = 40
"""of differences"""


@dataclass(frozen=True)
class Sample:
    """One prompt, and what two models made of it."""

    prompt: str
    candidate: str
    other: str
    scores: tuple[float, float]
    gain: float
    """by how much the candidate's answer is the better one"""


@dataclass(frozen=True)
class Samples:
    """Answers side by side: the largest wins and losses of the candidate."""

    metric: str
    against: str
    wins: tuple[Sample, ...]
    losses: tuple[Sample, ...]
    counts: tuple[int, int, int]
    """wins, ties and losses of all prompts"""


def page(plan: str, channel: str, inputs: Mapping[str, Artifact], champion: Mapping[str, Any] | None) -> str:
    """The evidence on the release that would be made of `inputs`; `champion`: `release.json` of what `channel` points to."""
    verdict = json.loads((inputs["verdict"].path / VERDICT_FILE).read_text(encoding="utf-8"))
    traces = {name: trace_among(inputs.values(), inputs[name], inputs) for name in ("policy", "verdict")}
    subject = Subject.of(inputs["verdict"], inputs["policy"])
    parts = [
        _ask(plan, channel, verdict, inputs["policy"], champion),
        _gates(verdict),
        _changes(channel, _lineage(traces), champion),
        _rows(inputs),
        _answers(verdict, inputs),
        _training(traces["policy"]),
        _made_of(traces["policy"]),
        f"Evidence on `{subject.digest[:12]}`: verdict `{subject.verdict[:12]}`, policy `{subject.policy[:12]}`.  "
        "What is decided is kept by that digest, and holds for nothing else.",
    ]
    return fitted([part for part in parts if part])


def fitted(parts: Sequence[str]) -> str:
    """The page of `parts`; while it is too large the largest is left out, and said to be."""
    kept = list(parts)
    while len((text := "\n\n".join(kept) + "\n").encode()) > MOST_BYTES:
        largest = max(range(len(kept)), key=lambda i: len(kept[i].encode()))
        heading = kept[largest].partition("\n")[0]
        kept[largest] = f"{heading}\n\nLeft out: it is larger than a form can show; see the artifacts of the stages."
    return text


def champion_of(store: Store, channel: str) -> dict[str, Any] | None:
    """`release.json` of the release that `channel` points to, if it is there."""
    from tasks.channels import channel as points_to

    key = points_to(store, channel)
    release = store.find("release", key) if key else None
    return release_record(release) | {"key": release.key} if release else None


def _ask(plan: str, channel: str, verdict: Mapping[str, Any], policy: Artifact, champion: Mapping[str, Any] | None) -> str:
    counts = Counter(gate["verdict"] for gate in verdict["gates"])
    said = ", ".join(f"{counts[name]} {word}" for name, word in _COUNTED.items() if counts[name])
    why = _OPEN if verdict["verdict"] == "review" else _ALWAYS
    now = f"release `{champion['key'][:12]}`" if champion else "nothing"
    lines = [
        f"## Release {inert(plan)} to {inert(channel)}?",
        f"**Gates: {said}.** {why}",
        f"Approved, `{channel}` moves from {now} to policy `{policy.key[:12]}`. Rejected, it stays where it is.",
    ]
    return "\n\n".join(lines)


_COUNTED = {"review": "open", "fail": "failed", "pass": "passed"}
_OPEN = "The measurements leave open whether the open ones hold, so a person decides."
_ALWAYS = "Every gate holds, and this plan asks a person all the same."


def _gates(verdict: Mapping[str, Any]) -> str:
    lines = ["### Gates", "", *_picture("intervals and bounds", gate_chart(verdict["gates"])), "| gate | found |", "|---|---|"]
    for gate, row in zip(verdict["gates"], rows(verdict), strict=True):
        asked = "<br>".join(
            f"{inert(line)}" for text in (f"need {row['need']}", row["note"]) for line in _wrapped(text, _GATE) if line
        )
        asked = f"**{_name(row['metric'])}**<br>{asked}"
        found = f"**{SAID[gate['verdict']]}**: {row['found']}<br>{row['interval']}<br>at {row['at']}, n={row['n']}"
        lines.append(f"| {asked} | {found} |")
    if said := challenge(verdict):
        lines += ["", inert(said)]
    if verdict["verdict"] != "pass":
        lines += ["", *(f"- {inert(reason)}" for reason in verdict["reasons"])]
    return "\n".join(lines)


def _changes(channel: str, mine: Sequence[Mapping[str, Any]], champion: Mapping[str, Any] | None) -> str:
    title = "### What changed since the champion" if channel == "champion" else f"### What changed since {inert(channel)}"
    if champion is None:
        return f"{title}\n\nThere is none: this would be the first release in `{channel}`."
    changed, followed = changes(champion["lineage"], mine)
    lines = [f"- **{inert(stage)}** {inert(_soft(line))}" for stage, line in changed[:_LINES]] or ["Nothing that was asked for."]
    if len(changed) > _LINES:
        lines.append(f"- and {len(changed) - _LINES} more; `align diff` shows all")
    if followed:
        lines += ["", f"Built anew because of that: {', '.join(map(inert, followed))}."]
    return "\n".join([title, "", *lines])


def changes(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], list[str]]:
    """What was asked for otherwise, as (stage, sentence), and the stages that only read something else than before.

    Both are the `lineage` of a release, inputs first.  Of several artifacts of one stage the ones with equal specs are compared.
    """
    known = {part["digest"] for part in (*before, *now)}
    changed: list[tuple[str, str]] = []
    followed: list[str] = []
    for stage in dict.fromkeys([part["stage"] for part in now] + [part["stage"] for part in before]):
        old, new = ([part for part in parts if part["stage"] == stage] for parts in (before, now))
        keys = {part["key"] for part in old}
        if not old or not new:
            changed.append((stage, "is new" if new else "is gone"))
            continue
        fresh = [part for part in new if part["key"] not in keys]
        found: list[str] = []
        for part in fresh:
            nearest = min(old, key=lambda one: (len(_asked(one, part)), len(_data(one, part, known))))
            found += [line for line in (*_asked(nearest, part), *_data(nearest, part, known)) if line not in found]
        changed += [(stage, line) for line in found]
        if fresh and not found:
            followed.append(stage)
    return changed, followed


def _asked(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """What the specs ask for otherwise; whom a verdict met is no wish, and always another."""
    version = [f"version {one['version']} -> {two['version']}"] if one["version"] != two["version"] else []
    old, new = ({name: value for name, value in part["spec"].items() if name != CHAMPION} for part in (one, two))
    return differences(old, new) + version


def _data(one: Mapping[str, Any], two: Mapping[str, Any], known: set[str]) -> list[str]:
    """Raw files that are others than before."""
    inputs = {**one["inputs"], **two["inputs"]}
    raw = [name for name, digest in inputs.items() if digest not in known and one["inputs"].get(name) != two["inputs"].get(name)]
    return [f"reads another file: {name} was {_short(one, name)}, is {_short(two, name)}" for name in raw]


def _short(part: Mapping[str, Any], name: str) -> str:
    return str(part["inputs"].get(name, "absent"))[:12]


def _rows(inputs: Mapping[str, Artifact]) -> str:
    lines = ["### Rows", "", "| data | in | kept | refused |", "|---|---:|---:|---:|"]
    refused: list[str] = []
    for artifact in {one.key: one for one in inputs.values() if one.kind in _DATA}.values():
        found = {name: int(str(artifact.metrics.get(f"rows_{name}") or 0)) for name in ("in", "kept", "quarantined")}
        if found["in"]:
            share = f"{found['kept']:,} ({found['kept'] / found['in']:.0%})"
            lines.append(f"| {artifact.kind} | {found['in']:,} | {share} | {found['quarantined']:,} |")
            refused += _refused(artifact)
    return "\n".join([*lines, "", *refused]).rstrip() if len(lines) > 4 else ""


def _refused(artifact: Artifact) -> list[str]:
    """By which rules most of its rows were."""
    path = artifact.path / "report.json"
    rules: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")).get("rules", []) if path.is_file() else []
    most = sorted((rule for rule in rules if rule["records"]), key=lambda rule: -rule["records"])[:5]
    named = ", ".join(f"{inert(str(rule['rule']))} {rule['records']:,}" for rule in most)
    return [f"- refused of {artifact.kind}: {named}"] if named else []


def _answers(verdict: Mapping[str, Any], inputs: Mapping[str, Artifact]) -> str:
    judged = inputs["verdict"].inputs  # other rewards may be there too, which the reward model was checked by
    folders = {name: one.path for name, one in inputs.items() if name in judged or name.startswith("answers_")}
    found = samples(verdict, folders)
    if found is None:
        return ""
    wins, ties, losses = found.counts
    of = f"`{found.metric}`, candidate against {found.against}: better on {wins} of {wins + ties + losses} prompts"
    lines = ["### Answers", "", f"By {of}, worse on {losses}, equal on {ties}."]
    for title, listed in (("Largest losses", found.losses), ("Largest wins", found.wins)):
        if listed:
            lines += ["", f"#### {title}"]
            for number, sample in enumerate(listed, start=1):
                lines += ["", *_side_by_side(number, sample, found.against)]
    return "\n".join(lines)


def _side_by_side(number: int, sample: Sample, against: str) -> Iterator[str]:
    mine, theirs = sample.scores
    yield f"**{number}.** ({mine - theirs:+.3g}) {_shortened(sample.prompt, _PROMPT)}"
    yield ""
    yield f"| candidate {mine:.3g} | {against} {theirs:.3g} |"
    yield "|---|---|"
    yield f"| {_shortened(sample.candidate, _ANSWER, column=True)} | {_shortened(sample.other, _ANSWER, column=True)} |"


def samples(verdict: Mapping[str, Any], folders: Mapping[str, Path]) -> Samples | None:
    """The largest wins and losses by the reward, else by the first gate that scores answers; None where nothing does."""
    against = next((who for who in (CHAMPION, "parent", "base") if f"answers_{who}" in folders), None)
    if against is None or "answers_candidate" not in folders:
        return None
    scores = Scores.read({name: path for name, path in folders.items() if (path / "scores.parquet").is_file()})
    mine, theirs = (
        {answer_item(row): row for row in read_rows(folders[f"answers_{who}"] / ANSWERS_FILE)} for who in ("candidate", against)
    )
    for raw, sign in _scoring(verdict):
        if not (scores.has("candidate", raw) and scores.has(against, raw)):
            continue
        ours, others = scores.aligned(("candidate", raw), (against, raw))
        if not set(ours.items) <= mine.keys() & theirs.keys():
            continue  # it scores something else than answers
        found = [
            Sample(_prompt(mine[item]), mine[item]["answer"], theirs[item]["answer"], (float(a), float(b)), sign * float(a - b))
            for item, a, b in zip(ours.items, ours.values, others.values, strict=True)
        ]
        ordered = sorted(found, key=lambda sample: (-sample.gain, sample.prompt))
        wins, losses = [s for s in ordered if s.gain > 0], [s for s in reversed(ordered) if s.gain < 0]
        counts = (len(wins), len(found) - len(wins) - len(losses), len(losses))
        return Samples(raw, against, tuple(wins[:SAMPLES]), tuple(losses[:SAMPLES]), counts)
    return None


def _scoring(verdict: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Raw scores that may rank answers, and 1 where more is better, the reward first."""
    yield "reward", 1
    for gate in verdict["gates"]:
        try:
            about = metric(gate["metric"], gate["against"])
        except AlignError:
            continue  # a module that is gone since
        for subject, raw in about.needs:
            if subject == "candidate":
                yield raw, 1 if about.better == "higher" else -1


def _prompt(row: Mapping[str, Any]) -> str:
    turns = row["prompt"]
    return turns[-1]["content"] if len(turns) == 1 else "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _shortened(text: str, most: int, *, column: bool = False) -> str:
    """At most `most` characters, on lines of a `column` of a table."""
    text = text.strip()
    if not text:
        return "*nothing*"
    lines = [wrapped for line in text[:most].splitlines() for wrapped in (_wrapped(line) if column else [_soft(line)])]
    return "<br>".join([*map(inert, lines), *([f"*… {len(text) - most:,} more characters*"] if len(text) > most else [])])


def _wrapped(line: str, width: int = _COLUMN) -> list[str]:
    """`line` in pieces as wide as half a form on a phone: Prefect's pages break no line inside a table, and widen for it."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in line)
    return textwrap.wrap(line, width // 2 if 2 * wide > len(line) else width) or [""]


def _name(metric: str) -> str:
    """The name of a metric on such lines, broken after its underscores and dots."""
    lines = [""]
    for part in re.split(r"(?<=[_.])", metric):
        if len(lines[-1]) + len(part) > _GATE:
            lines.append("")
        lines[-1] += part
    return "<br>".join(filter(None, lines))


def _soft(line: str) -> str:
    """`line` with places to break in words that would widen the page."""
    return re.sub(r"(\S{30})(?=\S)", "\\1\u200b", line)


def _training(policy: Trace) -> str:
    """A curve for each step of training, in the order they were taken."""
    lines: list[str] = []
    for part in policy.walk():
        if drawn := training(part.artifact.path):
            lines += ["", f"**{part.artifact.stage}**", "", *drawn]
    return "\n".join(["### Training", *lines]) if lines else ""


def _lineage(traces: Mapping[str, Trace]) -> list[dict[str, Json]]:
    found: dict[str, dict[str, Json]] = {}
    for traced in traces.values():
        for part in traced.walk():
            found.setdefault(part.artifact.key, part.to_json())
    return list(found.values())


def _made_of(policy: Trace) -> str:
    return "\n".join(["### Made of", "", *outline(policy)])


def _picture(about: str, svg: str) -> list[str]:
    return [f"![{about}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})", ""] if svg else []
