"""The report of a run: one HTML file that asks no address for anything and needs no script.

Every text is escaped by the template, and what it must not do (turn the line around, move the cursor) is taken out first.  Equal
records and artifacts give equal bytes.
"""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evals.report import challenge
from tasks import report_words as words
from tasks.charts import curves, gate_strip
from tasks.core.lineage import Trace
from tasks.core.secrets import redact
from tasks.core.store import Store
from tasks.graph import Node, graph
from tasks.present import headline
from tasks.report_facts import DATA, Facts, Step, gather
from tasks.review import inert
from tasks.training_plot import rows_of

TEMPLATES = Path(__file__).parent / "templates" / "report"
_PAGES = ("comparison.md", "search.md")
"""what a stage wrote for people and this page repeats, pictures included"""
_KINDS = {"policy": "model", "reward_model": "model", "verdict": "decided", "release": "decided"} | dict.fromkeys(DATA, "data")
_MOST_BOXES = 120
"""of a lineage that is drawn; more nobody reads"""
_MOST_TRAININGS = 24
"""whose curves are drawn: a search trains hundreds"""
_MARKS = {"✅": "pass", "❌": "fail", "🔎": "review"}
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
"""controls, among them those that turn the direction of what follows"""


def report(store: Store, record: Mapping[str, Any]) -> str:
    """The page on the run that `record` is about."""
    return page(gather(store, record))


def brief(store: Store, record: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict in a line, and it and the key numbers as Markdown in which no text can be more than text."""
    facts = gather(store, record)
    said = words.outcome(facts)
    mark = {"pass": "✅", "fail": "❌", "review": "🔎"}.get(said.tone, "⏹")
    lines = [f"# {mark} {inert(said.word)}", *(inert(_plain(line)) for line in (said.sentence, *said.more))]
    rows = [f"| {inert(what)} | **{inert(number)}** {inert(more)} |" for what, number, more in words.tiles(facts)]
    return _plain(f"{said.word}: {said.sentence}"), "\n\n".join([*lines, "\n".join(["| what | found |", "|---|---|", *rows])])


def page(facts: Facts) -> str:
    """The page of what was gathered."""
    lines, totals = words.costs(facts)
    verdict, record = facts.verdict, facts.record
    gates = words.gates(verdict) if verdict else []
    shown: dict[str, Any] = {
        "outcome": words.outcome(facts), "tiles": words.tiles(facts), "plan": record["plan"]["name"], "run": record["run"],
        "flow": record.get("flow", "align"), "started": words.when(record["started"]), "channel": facts.channel,
        "verdict": verdict, "gates": [{**row, "picture": Markup(gate_strip(row["gate"]))} for row in gates],
        "challenge": verdict and challenge(verdict), "notes": verdict and words.notes(verdict),
        "also": words.measured(verdict, suites=False) if verdict else [],
        "suites": words.measured(verdict, suites=True) if verdict else [], "pages": _pages(facts), "changes": facts.changes,
        "before": facts.before, "stood": facts.stood, "samples": facts.samples,
        "trainings": [_training(step) for step in facts.trained[:_MOST_TRAININGS]],
        "untold": len(facts.trained[_MOST_TRAININGS:]), "funnels": words.funnels(facts),
        "trained_rows": words.trained_rows(facts), "health": _health(facts), "costs": lines, "totals": totals,
        "graph": Markup(_graph(facts)), "made": words.made_with(facts), "digests": words.digests(facts.steps),
        "yaml": yaml.safe_dump(record["plan"], sort_keys=False, allow_unicode=True, width=100),
    }  # fmt: skip
    style = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    return _environment().get_template("page.html.j2").render(**shown, style=style, parts=_parts(shown)) + "\n"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_plain, trim_blocks=True,
        keep_trailing_newline=False,
    )  # fmt: skip
    environment.filters["cut"] = _cut  # pyright: ignore[reportArgumentType]
    return environment


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Texts without secrets and without what is not seen; marks of our own as they are."""
    return _UNSEEN.sub("\ufffd", redact(value)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _cut(text: str, most: int) -> str:
    text = text.strip() or "(nothing)"
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def _parts(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the page has, for the list at its top."""
    known = (
        ("gates", "gates", "Gates"), ("suites", "suites", "Suites"), ("pages", "result", "Result"),
        ("samples", "answers", "Answers"), ("trainings", "training", "Training"), ("funnels", "data", "Data"),
        ("health", "health", "Reward model"), ("costs", "cost", "Cost"), ("graph", "lineage", "Lineage"),
        ("made", "made", "Made with"),
    )  # fmt: skip
    found = [(anchor, title) for field, anchor, title in known if shown[field]]
    if shown["channel"] and shown["verdict"]:
        found.insert(
            next((i for i, (anchor, _) in enumerate(found) if anchor not in ("gates", "suites")), 0), ("changes", "Changes")
        )
    return found


def _training(step: Step) -> dict[str, Any]:
    assert step.artifact is not None
    drawn = [{"title": one.title, "unit": one.unit, "lines": one.lines, "picture": Markup(one.svg)}
             for one in curves(rows_of(step.artifact.path))]  # fmt: skip
    return {"name": step.name, "said": headline(step.artifact), "asked": words.settings(step), "curves": drawn}


def _graph(facts: Facts) -> str:
    if len(facts.traces) > _MOST_BOXES:
        return ""
    steps = {step.artifact.key: step for step in facts.steps if step.artifact}
    nodes = [_node(trace, steps.get(trace.artifact.key)) for trace in facts.traces]
    edges = [
        (below.artifact.key, trace.artifact.key)
        for trace in facts.traces for _, below in sorted(trace.inputs.items()) if isinstance(below, Trace)
    ]  # fmt: skip
    return graph(nodes, edges)


def _node(trace: Trace, step: Step | None) -> Node:
    artifact = trace.artifact
    style = _KINDS.get(artifact.kind, "measured") + (" cached" if step is None or step.state == "cached" else "")
    files = [f"\n{name}: file sha256 {below}" for name, below in sorted(trace.inputs.items()) if isinstance(below, str)]
    about = f"{artifact.kind}/{artifact.key}\ndigest {artifact.digest}\n{headline(artifact)}{''.join(files)}"
    title = (step.name if step else artifact.stage).removeprefix("curate-")
    return Node(artifact.key, title, f"{artifact.kind} {artifact.key[:8]}"[:21], str(_plain(about)), style)


def _health(facts: Facts) -> Markup | None:
    step = facts.step("health")
    return _rendered(step.artifact.path / "health.md") if step and step.artifact else None


def _pages(facts: Facts) -> list[Markup]:
    return [
        _rendered(step.artifact.path / name)
        for step in facts.steps if step.artifact for name in _page_names(step) if (step.artifact.path / name).is_file()
    ]  # fmt: skip


def _page_names(step: Step) -> tuple[str, ...]:
    return ("report.md",) if step.artifact and step.artifact.kind == "forgetting" else _PAGES


def _rendered(path: Path) -> Markup:
    """Markdown of a stage as HTML: no HTML of its own, no links, headings a step below ours, its pictures inside."""
    from markdown_it import MarkdownIt

    if not path.is_file():
        return Markup()
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink", "html_inline", "html_block"])
    tokens = reader.parse(str(_plain(path.read_text(encoding="utf-8"))))
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(int(token.tag[1]) + 2, 4)}"
        for child in token.children or ():
            if child.type == "image":
                child.attrs["src"] = _embedded(path.parent / Path(str(child.attrs["src"])).name)
    html = reader.renderer.render(tokens, reader.options, {})
    marks: Any = _environment().get_template("marks.html.j2").module
    for emoji, tone in _MARKS.items():  # few machines without a desktop have these letters
        html = html.replace(emoji, str(marks.sign(tone)))
    html = re.sub(r"<td>([-+\d.,%\[\]\s?]+)</td>", r'<td class="keep">\1</td>', html)
    html = re.sub(r"\[(-?[\d.?]+), (-?[\d.?]+)\]", "[\\1,\u00a0\\2]", html)  # an interval stays on its line
    html = html.replace("<table>", '<div class="scroll" role="region" aria-label="table" tabindex="0"><table>')
    return Markup(
        html.replace("</table>", "</table></div>").replace("<th ", '<th scope="col" ').replace("<th>", '<th scope="col">')
    )


def _embedded(picture: Path) -> str:
    if picture.suffix != ".png" or not picture.is_file():
        return "data:,"
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
