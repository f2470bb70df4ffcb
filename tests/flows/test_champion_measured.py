"""A champion on another base and tokenizer, measured by the real stages on tiny models: answers, rewards, a suite."""

import json
import os
from importlib import import_module

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import pyarrow.parquet as pq
import pytest
import tiny
from challenging import run
from smoke import write_smoke
from test_suites_run import Direct

from flows.loading import load
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import SpecError
from tasks.core.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
SUITE = [{"query": f"{asked}, therefore", "choices": [good, f"{good} {bad}"], "gold": 0}
         for asked, good, bad in zip(*(tiny.sentences(6, seed) for seed in (1, 2, 3)), strict=True)]  # fmt: skip
MET = [
    {"metric": "reward_win_rate", "at_least": 0, "against": "champion"},
    {"metric": "preference_accuracy", "at_least": 0, "against": "champion"},
    {"metric": "copa.accuracy_normalised", "at_least": -1, "against": "champion"},
]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.base.run_child", lambda job, *given: import_module(f"tasks.training.{job}").run(*given))
    write_smoke(tmp_path, None)
    other = tiny.write_model(tmp_path / "other", hidden=48, seed=1, positions=1024)
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 1000}))  # enough to be another
    (tmp_path / "copa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUITE))
    return Workshop(Store(tmp_path / "store"), tmp_path / "models", Execution(device="cpu", threads=1))


def plan(folder, gates, base="tiny"):
    suites = [{"name": "copa", "source": str(folder / "copa.jsonl")}]
    given = {"model.base": str(folder / base), "gates": json.dumps(gates), "evaluation.suites": json.dumps(suites),
             "policy": "null", "sft.max_steps": "1", "reward.max_steps": "1"}  # fmt: skip
    return load(folder / "plan.yaml", [f"{name}={value}" for name, value in given.items()])


def test_a_champion_of_another_base_is_measured_on_the_same_items_but_not_by_token(tmp_path, shop):
    sound = {"metric": "finished_rate", "at_least": 0}
    first = run(plan(tmp_path, [sound], base="other"), Direct(shop))
    build = Direct(shop)
    run(plan(tmp_path, [sound, *MET]), build)
    verdict = json.loads((build.made["verdict"].path / "verdict.json").read_text())
    assert verdict["champion"]["release"] == first.key
    counts = {gate["metric"]: gate["items"] for gate in verdict["gates"] if gate["metric"] != "preference_accuracy"}
    assert counts == {"finished_rate": 8, "reward_win_rate": 8, "copa.accuracy_normalised": 6}
    [win] = [gate for gate in verdict["gates"] if gate["metric"] == "reward_win_rate"]
    mine, theirs = (rewards(build, name, who) for name, who in (("rewards", "candidate"), ("rewards-champion", "champion")))
    assert mine.keys() == theirs.keys()
    wins = [0.5 + 0.5 * ((mine[item] > theirs[item]) - (mine[item] < theirs[item])) for item in mine]
    assert win["estimate"] == pytest.approx(sum(wins) / len(wins))
    by_token = {row["metric"]: row.get("error", "") for row in verdict["measured"] if row["against"] == "champion"}
    assert "their tokenizers differ" in by_token["answer_perplexity_ratio"]
    assert "their tokenizers differ" in by_token["answer_length_ratio"]
    assert by_token["reward_difference"] == ""
    with pytest.raises(SpecError, match=r"gate text_perplexity_ratio against champion: .* cuts texts into other tokens"):
        run(plan(tmp_path, [sound, {"metric": "text_perplexity_ratio", "margin": 0.1, "against": "champion"}]), Direct(shop))


def rewards(build, name, who):
    rows = pq.read_table(build.made[name].path / "scores.parquet").to_pylist()
    return {row["item"]: row["value"] for row in rows if (row["subject"], row["metric"]) == (who, "reward")}
