"""Channels: they move at once and never back by themselves, keep every move, and notice damage."""

import json
import multiprocessing
import os
import threading
from dataclasses import replace

import pytest
from releasing import DPO, Seed, pipeline, released

from tasks.channels import channel, channels, history, promote, rollback
from tasks.core.build import Workshop
from tasks.core.errors import DataError, SpecError
from tasks.core.spec import canonical, sha256
from tasks.core.store import Store


@pytest.fixture
def shop(tmp_path):
    return Workshop(Store(tmp_path / "store"), tmp_path / "models")


@pytest.fixture
def three(shop):
    return shop.store, *(released(shop, seed=seed) for seed in range(3))


def moves(store, name="champion"):
    return [(move["action"], move["release"]) for move in history(store, name)]


def test_promoting_and_rolling_back_moves_the_pointer_and_keeps_every_move(three):
    store, a, b, c = three
    assert channel(store, "champion") is None
    assert [promote(store, "champion", one, why=why, by="run a") for one, why in ((a, "first"), (b, ""))] == [True, True]
    assert channel(store, "champion") == b.key
    assert rollback(store, "champion", why="tone", by="ana") == a.key == channel(store, "champion")
    promote(store, "champion", c)
    assert rollback(store, "champion", why="refusals") == a.key  # not b, which was taken back before
    assert moves(store) == [("promote", a.key), ("promote", b.key), ("rollback", a.key), ("promote", c.key), ("rollback", a.key)]
    assert [move["why"] for move in history(store, "champion")] == ["first", "", "tone", "", "refusals"]
    assert [move["by"] for move in history(store, "champion")] == ["run a", "run a", "ana", "", ""]
    assert history(store, "champion")[0].keys() == {"action", "when", "release", "digest", "why", "by"}
    assert channels(store) == ["champion"]


def test_a_rerun_never_brings_back_what_was_rolled_back(three):
    store, a, b, _ = three
    promote(store, "champion", a)
    promote(store, "champion", b)
    rollback(store, "champion", why="tone")
    assert promote(store, "champion", b) is False
    assert channel(store, "champion") == a.key
    assert promote(store, "champion", b, again=True) is True
    assert promote(store, "champion", b, again=True) is False
    assert channel(store, "champion") == b.key


def test_a_rollback_without_a_reason_is_refused(three):
    store, a, b, _ = three
    promote(store, "champion", a)
    promote(store, "champion", b)
    for why in ("", "  "):
        with pytest.raises(SpecError, match="champion: a rollback is kept with its reason, so give one"):
            rollback(store, "champion", why=why)
    assert channel(store, "champion") == b.key


def test_a_channel_from_before_names_were_kept_is_read(three):
    store, a, b, _ = three
    move = {"action": "promote", "when": "2026-01-01T00:00:00+00:00", "release": a.key, "digest": a.digest, "why": "old"}
    fields = {"name": "champion", "history": [move]}
    (store.folder("channels") / "champion.json").write_text(json.dumps({**fields, "seal": sha256(canonical(fields))}))
    assert history(store, "champion") == [{**move, "by": ""}]
    promote(store, "champion", b)
    assert [move["release"] for move in history(store, "champion")] == [a.key, b.key]


def test_there_must_be_something_to_go_back_to(three):
    store, a, _, _ = three
    with pytest.raises(DataError, match="champion: no release is in this channel"):
        rollback(store, "champion", why="tone")
    promote(store, "champion", a)
    with pytest.raises(DataError, match=f"only release {a.key[:12]} is in this channel"):
        rollback(store, "champion", why="tone")


def test_only_a_release_can_be_promoted_and_only_to_a_proper_name(shop, three):
    store, a, _, _ = three
    with pytest.raises(SpecError, match="only a release can be promoted"):
        promote(store, "champion", pipeline(shop)["policy"])
    for name in ("Champion", "../runs/x", "", "a b"):
        with pytest.raises(SpecError, match="a channel's name is"):
            promote(store, name, a)
        assert channel(store, name) is None


def spoil(path):
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_a_damaged_release_is_refused(three):
    store, a, _, _ = three
    spoil(a.path / "README.md")
    with pytest.raises(DataError, match=r"README.md was altered, so it is not used; `align rerun release PLAN`"):
        promote(store, "champion", a)
    assert channels(store) == []


def test_a_release_whose_policy_is_damaged_gone_or_another_is_refused(shop):
    a, b = released(shop, seed=0), released(shop, seed=1)
    policies = {}
    for one in (a, b):
        policies[one.key] = shop.store.at("policy/" + json.loads((one.path / "release.json").read_text())["policy"]["key"])
    weights = policies[a.key].path / "weights.bin"
    sealed = weights.stat()
    spoil(weights)
    os.utime(weights, ns=(sealed.st_atime_ns, sealed.st_mtime_ns))  # so that only a look at the bytes tells
    with pytest.raises(DataError, match=r"policy .*: weights.bin was altered, so it is not used; `align rerun dpo PLAN`"):
        promote(shop.store, "champion", a)
    policies[b.key].path.rename(shop.store.root / "away")
    with pytest.raises(DataError, match="gone or damaged"):
        promote(shop.store, "champion", b)


def test_a_policy_rebuilt_differently_is_not_what_was_released(shop):
    a = released(shop)
    made = pipeline(shop)

    def other(spec, inputs, out, run):
        (out / "weights.bin").write_bytes(b"another")
        return {}

    again, _ = shop.build(replace(DPO, function=other), Seed(), {"policy": made["sft"], "data": made["preferences"]}, fresh=True)
    assert again.key == made["policy"].key
    with pytest.raises(DataError, match="came out different from what was judged"):
        promote(shop.store, "champion", a)


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda text: text[: len(text) // 2], "torn"),
        (lambda text: "", "torn"),
        (lambda text: "[]", "torn"),
        (lambda text: json.dumps({**json.loads(text), "history": []}), "altered by hand"),
        (lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "seal"}), "torn"),
    ],
)
def test_a_torn_or_edited_pointer_is_noticed(three, spoiled, said):
    store, a, b, _ = three
    promote(store, "champion", a)
    path = store.folder("channels") / "champion.json"
    path.write_text(spoiled(path.read_text()))
    for act in (
        lambda: channel(store, "champion"),
        lambda: promote(store, "champion", b),
        lambda: rollback(store, "champion", why="tone"),
    ):
        with pytest.raises(DataError, match=f"champion.json: {said}"):
            act()


def test_a_pointer_copied_to_another_name_is_noticed(three):
    store, a, _, _ = three
    promote(store, "champion", a)
    folder = store.folder("channels")
    (folder / "canary.json").write_text((folder / "champion.json").read_text())
    with pytest.raises(DataError, match="altered by hand"):
        channel(store, "canary")


def test_promotions_by_threads_at_once_are_all_in_the_history(shop):
    found = [released(shop, seed=seed) for seed in range(6)]
    threads = [threading.Thread(target=promote, args=(shop.store, "champion", one)) for one in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for _, key in moves(shop.store)) == sorted(one.key for one in found)
    assert channel(shop.store, "champion") == moves(shop.store)[-1][1]


def _promote(root, key):
    store = Store(root)
    promote(store, "champion", store.at(f"release/{key}"))


def test_promotions_by_processes_at_once_are_all_in_the_history(shop):
    keys = [released(shop, seed=seed).key for seed in range(4)]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_promote, args=(shop.store.root, key)) for key in keys]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(key for _, key in moves(shop.store)) == sorted(keys)
