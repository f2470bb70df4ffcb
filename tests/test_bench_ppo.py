"""The bench of PPO still runs: our side on a tiny model, and the table of what was measured."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "flows" / "plans" / "ppo-lora.yaml"


@pytest.fixture(scope="module")
def ppo() -> Any:
    """The bench, which is a script beside the tests and no package."""
    sys.path.append(str(ROOT))
    try:
        return import_module("tests.bench.ppo")
    finally:
        sys.path.remove(str(ROOT))


@pytest.mark.slow
def test_our_side_takes_its_turn_on_a_tiny_model_with_answers_of_one_length(ppo, tmp_path, monkeypatch):
    import tiny

    monkeypatch.setenv("ALIGN_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "store"))  # the bench sets it; here it is put back
    source = tiny.write_model(tmp_path / "source")
    load = ppo.Load(rollout=4, prompt=24, answer=6, micro=2, rank=2, iterations=2, turns=1, threads=1)
    lesson = ppo.prepare(PLAN, load, tmp_path / "bench", f"model.base={source}", "execution.device=cpu")
    assert [len(ids) for ids in lesson.ids] == [24] * 4
    turn = ppo.ours(lesson, load, tmp_path / "work")
    assert len(turn["seconds"]) == len(turn["cpu_seconds"]) == 1
    assert turn["seconds"][0] > 0
    assert 2e8 < turn["peak"] < 4e9


def test_the_table_gives_median_and_range_of_each_side_that_was_measured(ppo):
    ours, trl = ppo.Side(), ppo.Side()
    ours.add({"seconds": [2.0, 4.0, 3.0], "cpu_seconds": [1.0], "peak": 10**9})
    trl.add({"seconds": [8.0], "cpu_seconds": [9.0], "peak": 4 * 10**9})
    assert ppo.table({"ours": vars(ours), "trl": vars(trl)}).splitlines()[2:] == [
        "| ours | 3.0 (2.0 to 4.0) | 1.0 (1.0 to 1.0) | 1.00 |",
        "| trl | 8.0 (8.0 to 8.0) | 9.0 (9.0 to 9.0) | 4.00 |",
    ]
    assert "trl" not in ppo.table({"ours": vars(ours), "version": "1.12.0"})


def test_packages_that_cannot_be_installed_are_the_reason_trl_is_left_out(ppo, tmp_path, monkeypatch):
    def refused(*_: object, **__: object):
        class Done:
            returncode, stderr = 1, "ERROR: No matching distribution found for trl==1.12.0\n"

        return Done

    monkeypatch.delenv("ALIGN_BENCH_TRL", raising=False)
    monkeypatch.setattr(ppo.subprocess, "run", refused)
    monkeypatch.setattr(ppo.venv, "create", lambda folder, **_: Path(folder).mkdir())
    with pytest.raises(RuntimeError, match=r"trl 1\.12\.0 cannot be installed here: ERROR: No matching distribution"):
        ppo.trl_python(tmp_path / "trl")
    monkeypatch.setenv("ALIGN_BENCH_TRL", "/some/python")
    assert ppo.trl_python(tmp_path / "trl") == Path("/some/python")
