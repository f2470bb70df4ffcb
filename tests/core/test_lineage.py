"""Lineage: everything an artifact was made from, each once, whatever the digests share."""

import io

import pytest
from rich.console import Console

from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.errors import DataError
from tasks.core.lineage import Trace, opened, trace, trace_among
from tasks.core.spec import Spec
from tasks.core.store import Store


class Text(Spec):
    text: str = ""


def copy(spec, inputs, out, run):
    parts = [(path if path.is_file() else path / "text").read_text() for path in inputs.values()]
    (out / "text").write_text("".join(parts) + spec.text)
    return {}


DATA, POLICY, VERDICT = (Stage(f"make-{kind}", 1, kind, copy) for kind in ("texts", "policy", "verdict"))


@pytest.fixture
def made(tmp_path):
    raw = tmp_path / "raw.txt"
    raw.write_text("raw ")
    shop = Workshop(Store(tmp_path / "store"), tmp_path)
    data, _ = shop.build(DATA, Text(text="data "), {"0": raw})
    policy, _ = shop.build(POLICY, Text(text="policy "), {"data": data})
    verdict, _ = shop.build(VERDICT, Text(text="good"), {"policy": policy, "data": data})
    return shop, data, policy, verdict


def test_a_trace_follows_digests_down_to_the_files(made):
    shop, data, policy, verdict = made
    found = trace(shop.store, verdict)
    assert [part.artifact.key for part in found.walk()] == [data.key, policy.key, verdict.key]
    below = found.inputs["data"]
    assert isinstance(below, Trace)
    assert below.inputs == {"0": shop.store.digests.digest(shop.store.root.parent / "raw.txt")}
    assert found.to_json() == {
        "kind": "verdict", "key": verdict.key, "digest": verdict.digest, "stage": "make-verdict", "version": 1,
        "spec": {"text": "good"}, "inputs": {"data": data.digest, "policy": policy.digest},
    }  # fmt: skip


def test_what_is_no_longer_there_stays_a_digest(made):
    _, data, policy, verdict = made
    assert trace_among([policy], verdict).inputs["data"] == data.digest


def test_a_stage_that_changed_nothing_is_not_its_own_ancestor(made):
    shop, _, policy, _ = made
    same, _ = shop.build(POLICY, Text(), {"policy": policy})
    assert same.digest == policy.digest
    found = trace(shop.store, same)
    assert [part.artifact.key for part in found.walk()][-2:] == [policy.key, same.key]


def test_the_tree_draws_everything_and_repeats_nothing(made):
    shop, data, policy, verdict = made
    out = io.StringIO()
    Console(file=out, width=120).print(trace(shop.store, verdict).tree())
    text = out.getvalue()
    assert text.startswith(f"make-verdict verdict/{verdict.key[:12]}")
    assert text.count("file sha256") == 1
    assert f"make-texts texts/{data.key[:12]}" in text
    assert f"make-policy policy/{policy.key[:12]}" in text
    assert text.count("(above)") == 1


def test_a_folder_is_opened_only_if_its_manifest_is_whole(made, tmp_path):
    _, data, _, _ = made
    assert opened(data.path).digest == data.digest
    with pytest.raises(DataError, match="not an artifact"):
        opened(tmp_path)
    manifest = data.path / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text().replace("data ", "date "))
    with pytest.raises(DataError, match="was altered"):
        opened(data.path)


def test_of_two_artifacts_with_equal_bytes_the_one_with_the_inputs_name_counts(made):
    shop, data, policy, _ = made
    twin, _ = shop.build(POLICY, Text(text="raw data policy "), {})
    assert twin.digest == policy.digest
    assert twin.key != policy.key
    verdict, _ = shop.build(VERDICT, Text(text="fine"), {"mine": twin, "theirs": policy})
    found = trace_among([data, policy, twin], verdict, {"mine": twin, "theirs": policy}).inputs
    assert [(name, below.artifact.key) for name, below in found.items()] == [("mine", twin.key), ("theirs", policy.key)]
