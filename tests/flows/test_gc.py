"""Garbage collection really deletes, and never what a run, finished, lost or going on, may need."""

import json

import pytest

from flows.gc import collect, waste
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.errors import DataError
from tasks.core.files import locked
from tasks.core.spec import Spec
from tasks.core.store import Store


class Word(Spec):
    text: str


def write(spec, inputs, out, run):
    (out / "word").write_text(spec.text)
    return {}


@pytest.fixture
def built(tmp_path):
    shop = Workshop(Store(tmp_path / "store"), tmp_path / "models")
    stage = Stage("write", 1, "texts", write)
    old, _ = shop.build(stage, Word(text="old"), {})
    needed, _ = shop.build(stage, Word(text="needed"), {"old": old})
    stray, _ = shop.build(stage, Word(text="stray"), {})
    return shop.store, old, needed, stray


def record(store, name, status, artifact=None, flow="align"):
    steps = {"write": {"state": "Completed", "artifact": store.ref(artifact)}} if artifact else {}
    fields = {"plan": {"name": "p"}, "flow": flow, "status": status, **({"steps": steps} if steps else {})}
    (store.folder("runs") / f"{name}.json").write_text(json.dumps(fields))


def test_it_deletes_the_rest_and_keeps_the_last_whole_run_with_what_it_was_made_of(built):
    store, old, needed, stray = built
    record(store, "1", "completed", needed)
    record(store, "2", "lost")  # a killed run names nothing, and takes nothing away
    assert [item.path for item in waste(store, keep_days=14)] == []
    collect(store, dry_run=True, keep_days=0, json_output=True)
    assert stray.path.exists()
    collect(store, dry_run=False, keep_days=0, json_output=True)
    assert [old.path.exists(), needed.path.exists(), stray.path.exists()] == [True, True, False]


def test_a_comparison_of_a_plan_does_not_take_the_place_of_its_pipelines_last_run(built):
    store, old, needed, stray = built
    record(store, "1", "completed", needed)
    record(store, "2", "completed", stray, flow="compare")
    collect(store, dry_run=False, keep_days=0, json_output=True)
    assert [old.path.exists(), needed.path.exists(), stray.path.exists()] == [True, True, True]


def test_it_deletes_nothing_while_a_run_is_going_on(built):
    store, _, _, stray = built
    with locked(store.folder("runs") / "running.lock"), pytest.raises(DataError, match="run running is going on"):
        collect(store, dry_run=False, keep_days=0, json_output=True)
    assert stray.path.exists()
