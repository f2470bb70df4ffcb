"""Whole plans on stand-in stages: the real pipelines, verdicts, releases and channels, and models that are a number.

A model's quality is the learning rate that it was trained with; it lowers the surprise of answers by as much.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from scoring import rows, write

from flows.build import Champion
from flows.champion import Standing
from flows.loading import load_as
from flows.plan import Plan
from flows.task_pipeline import pipeline
from flows.task_plan import TaskPlan
from tasks.channels import history, promote
from tasks.core.build import Workshop
from tasks.heads import Head, write_head
from tasks.policy import Base, Link, PolicyRecord, write_record
from tasks.tables import write_answers

ROWS = 60
AHEAD = {"metric": "answer_perplexity_ratio", "at_most": 1, "against": "champion", "note": "at least as good as what stands"}
SOUND = {"metric": "finished_rate", "at_least": 0.2}
PLAN = {
    "name": "stand-in",
    "model": {"base": "smollm2-135m-instruct"},
    "data": {"instructions": {"sources": ["rows.jsonl"]}, "prompts": {"sources": ["rows.jsonl"]}},
    "sft": {"method": {"name": "full"}, "learning_rate": 0.1},
    "gates": [SOUND, AHEAD],
}
TASK = {
    "name": "stand-in",
    "model": {"base": "smollm2-135m-instruct"},
    "data": {"examples": {"sources": ["rows.jsonl"]}},
    "task": {"kind": "sequence_classification", "method": {"name": "full"}, "learning_rate": 0.1},
    "gates": [{"metric": "accuracy", "at_least": 0.0, "against": "champion"}, {"metric": "accuracy", "at_least": 0.1}],
}


def write_plan(folder: Path, **changed) -> Plan:
    """The plan with other fields, such as `sft={"learning_rate": 0.2}`, on a store in `folder`."""
    return _written(folder, Plan, PLAN, changed)


def plan_of(folder: Path, quality: float = 0.1, **changed) -> Plan:
    """The plan whose policy is that good."""
    return write_plan(folder, sft={"learning_rate": quality}, **changed)


def write_task_plan(folder: Path, **changed) -> TaskPlan:
    """The same of a plan for a task head."""
    return _written(folder, TaskPlan, TASK, changed)


def _written(folder, kind, fields, changed):
    (folder / "rows.jsonl").write_text("a row\n")
    fields = {**fields, "store": {"root": str(folder / "store")}}
    for name, value in changed.items():
        fields[name] = {**fields.get(name, {}), **value} if isinstance(value, dict) else value
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(fields))
    return load_as(kind, path)


@dataclass
class StandIns:
    """Builds stages as they are, but for those that read data or a model."""

    workshop: Workshop
    tokenizer: str = "1" * 64
    """of every policy that is built now; the base's decides"""
    template: str | None = None
    """likewise"""
    built: list[str] = field(default_factory=list)
    made: dict = field(default_factory=dict)

    def __call__(self, stage, spec, inputs, *, name=None):
        stand_in = {"policy": self._policy, "scores": _scores, "answers": _answers, "labelled": _rows}
        stand_in |= dict.fromkeys(("instructions", "prompts", "preferences", "texts"), _rows)
        artifact, built = self.workshop.build(replace(stage, function=stand_in.get(stage.kind, stage.function)), spec, inputs)
        self.built += [name or stage.name] if built else []
        self.made[name or stage.name] = artifact
        return artifact

    def _policy(self, spec, inputs, out, run):
        quality = getattr(spec, "learning_rate", 0.0)
        base = Base(name="smollm2-135m-instruct", revision="sha256:b179", files={})
        chain = (Link(stage="sft", method="full"),) if quality else ()
        task = getattr(spec, "kind", "policy")
        write_record(out, PolicyRecord(task=task, base=base, chain=chain, tokenizer=self.tokenizer, template=self.template))
        (out / "quality.json").write_text(json.dumps(quality))
        if task != "policy":
            write_head(out, Head(kind=task, labels=("a", "b"), majority="a", max_length=8, stride=1, max_answer_tokens=1))
        return {}


def run(plan, build: StandIns, *, land: bool = True):
    """What the flow does: the pipeline against what stands when it starts, then the channel.  The release."""
    store = build.workshop.store
    standing = Standing.of(plan, store)

    def meet(candidate):
        found = standing.against(candidate)
        return found and Champion(*found)

    pipeline(plan, build, meet)
    release = build.made["release"]
    if land:
        promote(store, plan.release.channel, release)
    return release


def verdict_of(build: StandIns) -> dict:
    """What was judged last."""
    return json.loads((build.made["verdict"].path / "verdict.json").read_text())


def moves(build: StandIns) -> list[tuple[str, str]]:
    """What happened to the channel."""
    return [(move["action"], move["release"]) for move in history(build.workshop.store, "champion")]


def _quality(inputs):
    return json.loads((inputs["policy"] / "quality.json").read_text())


def _rows(spec, inputs, out, run):
    (out / "rows.json").write_text(json.dumps([path.read_text() for _, path in sorted(inputs.items())]))
    return {}


def _answers(spec, inputs, out, run):
    prompt = [{"role": "user", "content": "?"}]
    answer = {"task": None, "prompt": prompt, "answer": f"of {_quality(inputs)}", "tokens": 3, "finished": True}
    write_answers(out, [{"id": f"i{i:03d}", "conversation": f"i{i:03d}", **answer} for i in range(ROWS)])
    return {}


def _scores(spec, inputs, out, run):
    if "policy" not in inputs:  # metrics of answers
        who = [name.removeprefix("answers_") for name in inputs if name.startswith("answers_")]
        write(out, [row for one in who for row in rows("finished", [1.0] * ROWS, subject=one)])
    elif "data" in inputs:  # predictions
        right = round(ROWS * _quality(inputs))
        majority = rows("accuracy", [_quality(inputs)] * ROWS, subject="majority")  # another for each model
        write(out, [*rows("accuracy", [float(i < right) for i in range(ROWS)]), *majority])
    else:
        write(out, rows("answer_nll", [2 - _quality(inputs) * (1 + i % 7 / 20) for i in range(ROWS)], weight=5.0))
    return {}
