"""The stage `release`: a policy that passed its gates, with its verdict, its lineage and its model card.

Inputs: `policy`, `verdict`, the scores and answers that the verdict was judged on, and every artifact that the card shall
mention; `decision`, the file of a person's approval, where the verdict or the spec asks for one.  The verdict must have been
measured on this very policy, the approval must be of these very two, and the policy's bytes must be whole.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from evals.report import CORRECTION, gate_markdown, headline
from tasks.core.contract import Metrics, Run, Stage
from tasks.core.errors import DataError, GateError, SpecError
from tasks.core.files import write_json
from tasks.core.lineage import Trace, opened, trace_among
from tasks.core.spec import Json, Spec
from tasks.core.store import Artifact, Store
from tasks.heads import FORMS
from tasks.judge import VERDICT_FILE
from tasks.policy import ADAPTERS, MODEL, PolicyRecord, is_seq2seq, read_record, sees_images
from tasks.released import RELEASE_FILE
from tasks.review import Approval, Decision, Subject, inert, read, standing

CARD = Path(__file__).parent / "templates" / "model_card.md.j2"
CARD_FILE = "README.md"
DECISION = "decision"
"""the input that is a person's approval"""
_DATA = ("instructions", "preferences", "prompts", "texts", "labelled")
_PIPELINES = {
    "policy": "text-generation",
    "reward": "text-classification",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
}
AUTO_CLASSES = {
    "policy": "AutoModelForCausalLM",
    "reward": "AutoModelForSequenceClassification",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}
_MADE = (*_DATA, "policy", "reward_model")


class ReleaseSpec(Spec):
    """What the release says of itself."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """of the released model"""
    summary: str = ""
    """what it is for, in a sentence or two"""
    license: str | None = None
    """of the released model, as a Hugging Face identifier such as apache-2.0"""
    base_model: str | None = None
    """hub id of the base for the card; default: the base's own name"""
    datasets: tuple[str, ...] = ()
    """hub ids of the data sets for the card"""
    languages: tuple[str, ...] = ()
    """ISO 639 codes such as en, zh"""
    tags: tuple[str, ...] = ()
    """for the card, beside the ones that follow from how it was made"""
    limits: tuple[str, ...] = ()
    """known limits, a sentence each"""
    approval: Approval = "review"
    """whether a person must approve where the gates leave it open, or always"""


def refusal(verdict: Path, approval: Approval = "review", decision: Decision | None = None) -> str | None:
    """Why the verdict in folder `verdict` allows no release, with the numbers, or None if it does.

    A person decides what the gates leave open, and under `approval: always` what they allow; never what they forbid.
    """
    record = _json(verdict / VERDICT_FILE)
    said = record["verdict"]
    reasons: list[str] = record["reasons"]
    more = f" (and {len(reasons) - 2} more)" if len(reasons) > 2 else ""
    no = f"not released, the verdict is {said}: {'; '.join(reasons[:2])}{more}"
    if not record["gates"] or said == "fail":
        return no
    if not asks(said, approval):
        return None
    if decision is None:
        return no if said == "review" else f"not released, the verdict is {said}, and this plan asks a person to approve it"
    return None if decision.action == "approve" else f"not released, {decision.sentence}"


def asks(verdict: str, approval: Approval) -> bool:
    """Whether a person must approve before a release.

    >>> asks("review", "review"), asks("pass", "review"), asks("pass", "always"), asks("fail", "always")
    (True, False, True, False)
    """
    return verdict == "review" or (verdict == "pass" and approval == "always")


@dataclass(frozen=True)
class Ruling:
    """Whether a verdict and a policy may be released as things stand."""

    refusal: str | None
    """why not, or None"""
    open: bool
    """whether that is so because nobody decided yet"""
    asked: bool
    """whether a person is to decide, or has"""
    approval: Path | None
    """the file of the approval that allows it: the release's input"""


def ruling(store: Store, spec: ReleaseSpec, verdict: Artifact, policy: Artifact) -> Ruling:
    """What the gates and people have said until now."""
    record = _json(verdict.path / VERDICT_FILE)
    asked = bool(record["gates"]) and asks(record["verdict"], spec.approval)
    decision, file = (asked and standing(store, Subject.of(verdict, policy))) or (None, None)
    no = refusal(verdict.path, spec.approval, decision)
    return Ruling(no, open=asked and decision is None and bool(no), asked=asked, approval=None if no else file)


def release(spec: ReleaseSpec, inputs: Mapping[str, Path], out: Path, run: Run) -> Metrics:
    """Write `release.json` and the model card `README.md`.

    Raises GateError unless the verdict is pass or a person approved, SpecError if no gate was asked for, and DataError for a
    damaged policy or a verdict that was measured on another one.
    """
    verdict = _json(inputs["verdict"] / VERDICT_FILE)
    if not verdict["gates"] and not verdict.get("not_judged"):
        raise SpecError(f"{spec.name}: a release needs at least one gate; add gates to the plan")
    decision = read(inputs[DECISION]) if DECISION in inputs else None
    if no := refusal(inputs["verdict"], spec.approval, decision):
        raise GateError(f"{spec.name}: {no}")
    artifacts = {name: opened(path) for name, path in sorted(inputs.items()) if name != DECISION}
    policy = artifacts["policy"]
    if decision and decision.subject != Subject.of(artifacts["verdict"], policy):
        raise GateError(f"{spec.name}: not released, what was {decision.sentence} is another verdict or policy; ask again")
    if damage := policy.damage(deep=True):
        raise DataError(f"policy {policy.key[:12]}: {damage}; `align rerun {policy.stage} PLAN` builds it again")
    traces = {name: trace_among(artifacts.values(), artifacts[name], artifacts) for name in ("policy", "verdict")}
    _refuse_other(policy, traces["verdict"])
    record = read_record(inputs["policy"])
    base: Json = record.base.model_dump(mode="json")
    write_json(
        out / RELEASE_FILE,
        {
            "name": spec.name,
            "policy": {"key": policy.key, "digest": policy.digest},
            "base": base,
            "chain": [link.model_dump(mode="json") for link in record.chain],
            "verdict": {"key": artifacts["verdict"].key, "digest": artifacts["verdict"].digest, **verdict},
            "approval": decision and decision.model_dump(mode="json"),
            "lineage": _lineage(traces),
        },
    )
    seq2seq = _writes_after_encoding(inputs["policy"], record)
    card = _card(spec, record, verdict, decision, traces, seq2seq=seq2seq)
    (out / CARD_FILE).write_text(card, encoding="utf-8")
    run.log(f"{spec.name}: {headline(verdict)}{f', {decision.sentence}' if decision else ''}")
    approval: Metrics = {"approved_by": decision.by} if decision else {}
    return {"policy": policy.key, "verdict": verdict["verdict"], "gates": len(verdict["gates"]), **approval}


def _refuse_other(policy: Artifact, verdict: Trace) -> None:
    """Follow everything the verdict calls the candidate's down to the policy that was measured."""
    theirs = [(name, below) for part in verdict.walk() for name, below in part.inputs.items() if name.endswith("_candidate")]
    if not theirs:
        raise DataError("release: the scores that the verdict was judged on are not among its inputs; hand them over")
    for name, below in theirs:
        if isinstance(below, str):
            raise DataError(f"release: {name}, which the verdict was judged on, is not among its inputs; hand it over")
        if policy.digest not in {digest for part in below.walk() for digest in part.artifact.inputs.values()}:
            raise DataError(f"release: {name} was not measured on policy {policy.key[:12]}; judge this policy first")


def _lineage(traces: Mapping[str, Trace]) -> list[Json]:
    """Every artifact below policy and verdict once, inputs first."""
    found: dict[str, Json] = {}
    for traced in traces.values():
        for part in traced.walk():
            found.setdefault(part.artifact.key, part.to_json())
    return list(found.values())


def _writes_after_encoding(policy: Path, record: PolicyRecord) -> bool:
    """Whether the policy is an encoder-decoder model, as its own weights or adapters tell."""
    if (policy / MODEL).is_dir():
        return is_seq2seq(policy / MODEL)
    configs = [policy / ADAPTERS / name / "adapter_config.json" for name in record.adapters]
    return any(path.is_file() and _json(path).get("task_type") == "SEQ_2_SEQ_LM" for path in configs)


def auto_class(record: PolicyRecord) -> str:
    """The class of transformers that loads a whole model of this kind; an encoder-decoder policy apart."""
    return "AutoModelForImageTextToText" if record.task == "policy" and sees_images(record) else AUTO_CLASSES[record.task]


def _pipeline(record: PolicyRecord, *, seq2seq: bool) -> str:
    """The hub's name of what the model does."""
    if record.task == "policy" and sees_images(record):
        return "image-text-to-text"
    return "text2text-generation" if seq2seq else _PIPELINES[record.task]


def _card(
    spec: ReleaseSpec,
    record: PolicyRecord,
    verdict: Any,  # noqa: ANN401
    decision: Decision | None,
    traces: Mapping[str, Trace],
    *,
    seq2seq: bool,
) -> str:
    """The model card, in the form that the Hugging Face hub reads."""
    import yaml
    from jinja2 import Environment, StrictUndefined

    stages = [link.stage for link in record.chain]
    front = {
        "base_model": spec.base_model or record.base.name,
        "license": spec.license,
        "language": list(spec.languages),
        "datasets": list(spec.datasets),
        "library_name": "peft" if record.adapters else "transformers",
        "pipeline_tag": _pipeline(record, seq2seq=seq2seq),
        "tags": list(dict.fromkeys([*spec.tags, "alignflow", *stages, *(link.method for link in record.chain)])),
    }
    template = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return template.from_string(CARD.read_text(encoding="utf-8")).render(
        front=yaml.safe_dump({k: v for k, v in front.items() if v}, sort_keys=False, allow_unicode=True),
        spec=spec,
        record=record,
        base_model=front["base_model"],
        headline=headline(verdict),
        gates=gate_markdown(verdict),
        correction=CORRECTION,
        verdict=verdict,
        decision=decision,
        inert=inert,
        head=record.task in FORMS,
        pipeline=front["pipeline_tag"],
        made=[_made(part) for part in traces["policy"].walk() if part.artifact.kind in _MADE],
        lineage=list(outline(traces["policy"])),
    )


def _made(part: Trace) -> dict[str, object]:
    """One stage for the card: what was asked for, and for data what became of the rows."""
    artifact = part.artifact
    report = artifact.path / "report.json"
    return {
        "stage": artifact.stage,
        "kind": artifact.kind,
        "key": artifact.key[:12],
        "spec": json.dumps(artifact.identity["spec"], indent=2, ensure_ascii=False, sort_keys=True),
        "funnel": list(_funnel(_json(report))) if artifact.kind in _DATA and report.exists() else [],
    }


def _funnel(report: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """What became of the rows, from a curation's report; numbers alone, so that no row's text leaves with the card."""
    for name, number in report["metrics"].items():
        yield name.replace("_", " "), f"{number:,}" if isinstance(number, int) else f"{number:.4g}"
    for rule in report["rules"]:
        yield f"refused: {rule['rule']}", f"{rule['records']:,}"


def outline(trace: Trace, name: str = "", depth: int = 0, drawn: set[str] | None = None) -> Iterator[str]:
    """The lineage as an indented list; what occurs twice is drawn out once."""
    drawn = set() if drawn is None else drawn
    again = trace.artifact.key in drawn
    drawn.add(trace.artifact.key)
    label = f"{name}: " if name else ""
    artifact = trace.artifact
    yield f"{'  ' * depth}- {label}{artifact.stage} `{artifact.kind}/{artifact.key[:12]}`{' (above)' if again else ''}"
    for below_name, below in [] if again else sorted(trace.inputs.items()):
        if isinstance(below, Trace):
            yield from outline(below, below_name, depth + 1, drawn)
        else:
            yield f"{'  ' * (depth + 1)}- {below_name}: file sha256 `{below[:12]}`"


def _json(path: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); run again and it is rebuilt") from error


RELEASE = Stage("release", 1, "release", release, texts=lambda _: {CARD.name: CARD.read_text(encoding="utf-8")})
