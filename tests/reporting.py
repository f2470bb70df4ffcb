"""A store with one recorded run of stand-in stages, small and complete, for tests of its report."""

import json
from unittest import mock

from releasing import DPO, SFT
from scoring import rows, write

from evals.gates import Gate
from tasks import channels
from tasks.channels import Move, promote
from tasks.core.build import Workshop
from tasks.core.contract import Stage, Usage
from tasks.core.spec import Spec
from tasks.judge import VERDICT, VerdictSpec
from tasks.release import RELEASE, ReleaseSpec
from tasks.tables import write_answers

HOSTILE = (
    "<script>fetch('http://evil.example')</script><img src=x onerror=alert(1)> ![x](http://evil.example/a.png) \u202eevil\u202c "
    "</section><style>*{display:none}</style>" + "A" * 400
)
GATES = (
    Gate(metric="reward_win_rate", at_least=0.5, note="people <b>like</b> it"),
    Gate(metric="finished_rate", at_least=0.9, note="answers must end"),
)
RULES = [
    {"stage": "staging", "rule": "empty <answer>", "records": 90, "items": 0},
    {"stage": "pairs", "rule": "tie", "records": 10, "items": 4},
]
ITEMS = 40


class Seed(Spec):
    seed: int = 0


def _data(spec, inputs, out, run):
    metrics = {"rows_in": 1200, "rows_kept": 1100, "rows_quarantined": 100, "dropped": 4, "train": 900, "heldout": 200}
    (out / "report.json").write_text(json.dumps({"metrics": metrics, "rules": RULES}))
    return metrics


def _trained(stage):
    """`stage` with a curve, and a child that took something."""

    def train(spec, inputs, out, run):
        stage.function(spec, inputs, out, run)
        curve = [{"step": step, "iteration": step, "reward": step / 10, "reward_std": 1.0, "answers": 16, "kl": step / 100,
                  "kl_coefficient": 0.1 + step / 1000, "value_loss": 1 / step, "explained_variance": step / 60,
                  "entropy": 2.0, "answer_tokens": 20 + step % 3} for step in range(1, 61)]  # fmt: skip
        (out / "training.json").write_text(json.dumps(curve))
        run.used(Usage(12.5, 3 * 2**30, None))
        return {"rows": 900, "rows_trained": 880, "rows_truncated": 7, "rows_dropped": {"no answer": 20}}

    return Stage(stage.name, 1, "policy", train)


def _answers(text):
    def write_them(spec, inputs, out, run):
        write_answers(out, [
            {"id": row["item"], "conversation": row["cluster"], "task": None, "prompt": [{"role": "user", "content": text}],
             "answer": f"{text} {row['item']}", "tokens": 3, "finished": True} for row in rows("reward", [0.0] * ITEMS)
        ])  # fmt: skip
        return {}

    return Stage("answers", 1, "answers", write_them)


def _scores(good, finished=1.0):
    def score(spec, inputs, out, run):
        values = [good * (1 if i % 4 else -1) + i / 1000 for i in range(ITEMS)]
        write(out, [*rows("reward", values, subject=""), *rows("finished", [finished] * ITEMS, subject="")])
        return {}

    return Stage("scores", 1, "scores", score)


def _moved_then(action, release, why, by):
    """A move while the recorded run was running."""
    return Move(action=action, when="2026-01-02T03:20:00+00:00", release=release.key, digest=release.digest, why=why, by=by)


def run(folder, *, status="completed", text="Say <hello>.", release=True, finished=1.0, error=None, failed=()):
    """(store, record) of a run; `failed` stages have no artifact, and what came after them has not begun."""
    from tasks.core.store import Store

    store = Store(folder / "store")
    shop = Workshop(store, folder / "models")
    (folder / "raw.jsonl").write_text("rows")
    made = {}

    def build(name, stage, spec, inputs):
        if not failed or not {*failed} & {*made, name}:
            made[name], _ = shop.build(
                stage, spec, {key: made[one] if isinstance(one, str) else one for key, one in inputs.items()}
            )
        else:
            made[name] = None

    build("curate-preferences", Stage("curate-preferences", 1, "preferences", _data), Seed(), {"0": folder / "raw.jsonl"})
    build("sft", _trained(SFT), Seed(seed=1), {"data": "curate-preferences"})
    build("dpo", _trained(DPO), Seed(seed=2), {"policy": "sft", "data": "curate-preferences"})
    for who, model, good in (("candidate", "dpo", 1.0), ("parent", "sft", 0.1)):
        build(f"answers-{who}", _answers(text), Seed(seed=int(good)), {"policy": model})
        build(
            f"scores-{who}",
            _scores(good, finished if who == "candidate" else 1.0),
            Seed(seed=int(good)),
            {"answers": f"answers-{who}"},
        )
    scores = {f"scores_{who}": f"scores-{who}" for who in ("candidate", "parent")}
    build("verdict", VERDICT, VerdictSpec(gates=GATES, resamples=1000), scores)
    if release:
        inputs = {"policy": "dpo", "verdict": "verdict", "preferences": "curate-preferences", "sft": "sft", **scores}
        answers = {f"answers_{who}": f"answers-{who}" for who in ("candidate", "parent")}
        build("release", RELEASE, ReleaseSpec(name="demo"), inputs | answers)
        if made["release"]:
            with mock.patch.object(channels, "_move", _moved_then):
                promote(store, "champion", made["release"])
    broken = next((list(made).index(name) for name in made if name in failed), len(made))
    steps = {}
    for number, (name, artifact) in enumerate(made.items(), start=1):
        state = "Cached" if name == "sft" else "Completed" if artifact else "Failed" if number - 1 == broken else "Pending"
        steps[name] = {
            "number": number,
            "state": state,
            "artifact": store.ref(artifact) if artifact else None,
            "seconds": number * 7.5,
        }
    if not release:
        steps["release"] = {"number": len(steps) + 1, "state": "Failed", "artifact": None}
    record = {
        "run": "demo-20260102-030405-7", "flow": "align", "called": "demo-20260102-030405", "flow_run": "0" * 8,
        "plan": {"name": "demo", "release": {"channel": "champion"}, "sft": {"seed": 3}, "note": text}, "status": status,
        "error": error, "started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T03:24:05+00:00", "steps": steps,
        "process": {"cpu_seconds": 4.5, "peak_bytes": 2**28},
    }  # fmt: skip
    store.folder("runs").joinpath(f"{record['run']}.json").write_text(json.dumps(record))
    return store, record
