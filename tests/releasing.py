"""A pipeline of stand-in stages with the real verdict and release, for tests of what happens after training."""

import json

from scoring import rows, write

from evals.gates import Gate
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.spec import Spec
from tasks.judge import VERDICT, VerdictSpec
from tasks.policy import Base, Link, PolicyRecord, write_record
from tasks.release import RELEASE, ReleaseSpec

GATES = (
    Gate(metric="reward_win_rate", at_least=0.5),
    Gate(metric="finished_rate", at_least=0.9, note="answers must end | always"),
)


class Seed(Spec):
    seed: int = 0
    quality: float = 1.0


def _data(spec, inputs, out, run):
    metrics = {"rows_in": 1200, "rows_kept": 1100, "longer_chosen_share": 0.53125}
    rules = [{"stage": "staging", "rule": "empty | blank", "records": 100, "items": 0}]
    report = {"metrics": metrics, "rules": rules, "examples": [{"raw": "a private line"}]}
    (out / "train.parquet").write_bytes(b"rows %d" % spec.seed)
    (out / "report.json").write_text(json.dumps(report))
    return {}


def policy(*chain, quantization=None, model=False):
    """A stage that builds a policy with this chain."""

    def write_policy(spec, inputs, out, run):
        (out / "weights.bin").write_bytes(b"weights %d" % spec.seed)
        if model:
            (out / "model").mkdir()
            (out / "model" / "model.safetensors").write_bytes(b"merged %d" % spec.seed)
        base = Base(name="smollm2-135m-instruct", revision="sha256:b179", files={"model.safetensors": "0" * 64})
        record = PolicyRecord(
            task="policy", base=base, quantization=quantization, chain=chain, tokenizer="1" * 64, template="2" * 64
        )  # fmt: skip
        write_record(out, record)
        return {}

    return Stage(chain[-1].stage if chain else "base", 1, "policy", write_policy)


def _answers(spec, inputs, out, run):
    (out / "answers.parquet").write_bytes(b"answers %f %d" % (spec.quality, spec.seed))
    return {}


def _scores(spec, inputs, out, run):
    finished = rows("finished", [1.0] * 60, subject="")
    write(out, [*rows("reward", [spec.quality + i % 7 / 7 for i in range(60)]), *finished])
    return {}


PREFERENCES = Stage("preferences", 1, "preferences", _data)
ANSWERS = Stage("answers", 1, "answers", _answers)
SCORES = Stage("scores", 1, "scores", _scores)
SFT = policy(Link(stage="sft", method="lora", adapter="0-sft"))
DPO = policy(Link(stage="sft", method="lora", adapter="0-sft"), Link(stage="dpo", method="lora", adapter="1-dpo"))


def pipeline(shop: Workshop, *, seed=0, quality=1.0, gates=GATES, stage=DPO):
    """Everything up to the release's inputs: name -> artifact."""
    raw = shop.store.root.parent / "raw.jsonl"
    raw.write_text("rows")
    data, _ = shop.build(PREFERENCES, Seed(), {"0": raw})
    sft, _ = shop.build(SFT, Seed(seed=100), {"data": data})
    dpo, _ = shop.build(stage, Seed(seed=seed), {"policy": sft, "data": data})
    made = {"preferences": data, "sft": sft, "policy": dpo}
    scores = {}
    for who, model, good in (("candidate", dpo, quality), ("parent", sft, 0.0)):
        answers, _ = shop.build(ANSWERS, Seed(quality=good, seed=seed), {"policy": model})
        made[f"answers_{who}"] = answers
        scores[f"scores_{who}"], _ = shop.build(SCORES, Seed(quality=good, seed=seed), {"answers": answers})
    verdict, _ = shop.build(VERDICT, VerdictSpec(gates=gates, resamples=1000), scores)
    return {**made, **scores, "verdict": verdict}


def released(shop: Workshop, *, name="demo", **more):
    """The release of such a pipeline."""
    artifact, _ = shop.build(RELEASE, ReleaseSpec(name=name), pipeline(shop, **more))
    return artifact
