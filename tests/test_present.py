"""What a person reads of an artifact: the page, the gate table, the line."""

import base64
import json

from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.present import headline, summary, table, watched
from tasks.training_plot import picture

GATE = {
    "metric": "reward_win_rate", "against": "parent", "at_least": 0.5, "at_most": None, "level": 0.95, "note": "",
    "demand": ">= 0.5 against parent", "verdict": "fail", "estimate": 0.25, "low": 0.1, "high": 0.4, "items": 80,
    "smallest_effect": 0.18, "p": 0.0004, "sentence": "reward_win_rate: no",
}  # fmt: skip


def made(tmp_path, name, kind, files, metrics):
    """An artifact of a stage that writes `files`."""

    def write(spec, inputs, out, run):
        for file, text in files.items():
            (out / file).write_text(text, encoding="utf-8")
        return metrics

    return Workshop(Store(tmp_path / "store"), tmp_path / "models").build(Stage(name, 1, kind, write), Spec(), {})[0]


def test_a_trained_policy_shows_its_curve_its_numbers_and_how_to_see_more(tmp_path):
    steps = [{"step": step, "loss": 2.0 / step} for step in range(1, 301)]
    metrics = {"first_loss": 2.0, "last_loss": 0.002, "steps": 300, "peak_bytes": 3 * 2**20, "dropped": {}}
    artifact = made(tmp_path, "dpo", "policy", {"training.json": json.dumps(steps)}, metrics)
    title, _, about, _, shown, _, said, _, *rest = summary(artifact, built=True, about="Prefer chosen answers.").split("\n")
    assert title == "# dpo"
    assert about == "Prefer chosen answers."
    assert said == "Steps 1 to 300: loss (all of it) 2 → 0.00667."
    assert base64.b64decode(shown.removeprefix("![training](data:image/png;base64,").removesuffix(")")) == picture(steps)
    assert rest[:6] == [
        "| metric | value |", "|---|---:|", "| first_loss | 2 |", "| last_loss | 0.002 |", "| steps | 300 |",
        "| peak_bytes | 3.0 MiB |",
    ]  # fmt: skip
    assert rest[-1].startswith(f"`policy/{artifact.key[:12]}`, built in this run; made 20")
    assert rest[-1].endswith(f"All of it: `align show {artifact.key[:12]}`")
    assert headline(artifact) == "loss 2 -> 0.002 in 300 steps"


def test_a_curve_of_one_step_or_of_no_finite_loss_is_left_out(tmp_path):
    for number, steps in enumerate(([{"step": 1, "loss": 2.0}], [{"step": 1, "loss": float("nan")}, {"step": 2}], [])):
        artifact = made(tmp_path / str(number), "sft", "policy", {"training.json": json.dumps(steps)}, {})
        assert "data:image" not in summary(artifact, built=False)


def test_a_running_stage_says_first_how_it_goes():
    ppo = {
        "loss": 0.1, "grad_norm": 1.0, "learning_rate": 1e-4, "iteration": 3.0, "answers": 32.0, "reward": 0.75, "kl": 1.25,
        "reward_std": 0.5, "entropy": 2.0, "answer_tokens": 20.5, "finished": 0.9, "value_loss": 0.25, "clip_fraction": 0.125,
    }  # fmt: skip
    assert (
        watched(ppo)
        == "reward 0.75  kl 1.25  tokens 20.5  finished 0.9  loss 0.1  value loss 0.25  entropy 2  clip_fraction 0.125"
    )
    assert watched(ppo, 3) == "reward 0.75  kl 1.25  tokens 20.5"
    assert watched({"loss": 0.5, "entropy": 2.0, "rewards/margins": 0.25}) == "loss 0.5  margin 0.25"
    assert watched({"rollout": 2.0}) == "rollout 2"


def test_the_gate_table_says_each_verdict_in_a_named_column(tmp_path):
    verdict = {"verdict": "fail", "gates": [GATE], "reasons": [], "measured": [], "seed": 0, "resamples": 1000}
    metrics = {"verdict": "fail", "gates": 1, "pass": 0, "fail": 1, "review": 0}
    artifact = made(tmp_path, "verdict", "verdict", {"verdict.json": json.dumps(verdict)}, metrics)
    [row] = table(artifact)
    assert row == {
        "verdict": "❌ fail", "metric": "reward_win_rate", "need": ">= 0.5 against parent", "found": "0.250",
        "interval": "[0.100, 0.400]", "at": "95%", "p": "<0.001", "n": "80", "smallest effect": "0.18", "note": "",
    }  # fmt: skip
    assert headline(artifact) == "fail: 0 of 1 gates hold"
    assert table(made(tmp_path, "sft", "policy", {"model": ""}, {})) == []
