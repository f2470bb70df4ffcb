"""Channels at the command line: what a list shows, who and why are kept, what is refused."""

import json

import pytest
from releasing import pipeline, released

from flows import releases
from tasks.channels import channel, history, promote
from tasks.core.build import Workshop
from tasks.core.errors import DataError, SpecError
from tasks.core.files import remove
from tasks.core.store import Store


@pytest.fixture
def shop(tmp_path):
    return Workshop(Store(tmp_path / "store"), tmp_path / "models")


@pytest.fixture
def two(shop):
    a, b = released(shop), released(shop, seed=1)
    promote(shop.store, "champion", a, why="released by plan demo", by="run demo-1")
    promote(shop.store, "staging", b, why="released by plan demo", by="run demo-2")
    return shop.store, a, b


def test_a_person_points_a_channel_to_what_another_points_to_and_is_kept_with_the_reason(two, capsys):
    store, a, b = two
    releases.point(store, "staging", "champion", "two days \n without complaints", "ana")
    assert capsys.readouterr().out == f"champion = release {b.key[:12]}, promoted, by ana\n"
    last = history(store, "champion")[-1]
    assert {**last, "when": ""} == {
        "action": "promote", "when": "", "release": b.key, "digest": b.digest, "why": "two days without complaints", "by": "ana",
    }  # fmt: skip
    releases.point(store, b.key[:9], "champion", "again", "ana")
    assert "where it pointed already" in capsys.readouterr().out
    assert len(history(store, "champion")) == 2
    releases.point(store, a.key[:9], "champion", "the older one answers better", "bo")
    assert channel(store, "champion") == a.key


def test_the_user_of_the_machine_did_it_where_nobody_is_named(two, monkeypatch):
    store, _, _b = two
    monkeypatch.setattr("getpass.getuser", lambda: "carla")
    releases.point(store, "staging", "champion", "reads better", None)
    releases.roll_back(store, "champion", "it does not", None)
    assert [move["by"] for move in history(store, "champion")] == ["run demo-1", "carla", "carla"]


def test_no_reason_no_name_no_release_no_channel_is_refused_and_nothing_moves(shop, two):
    store, _, _b = two
    for why, by, said in (("", "ana", "--why: a decision is kept with its reason"), ("better", "", "--by: a decision is kept")):
        with pytest.raises(SpecError, match=said):
            releases.point(store, "staging", "champion", why, by)
    with pytest.raises(SpecError, match="champion: a rollback is kept with its reason"):
        releases.roll_back(store, "champion", " ", "ana")
    with pytest.raises(SpecError, match="this is of kind policy; a channel points to a release"):
        releases.point(store, pipeline(shop)["policy"].key[:12], "champion", "better", "ana")
    with pytest.raises(DataError, match="nobody: no artifact"):
        releases.point(store, "nobody", "champion", "better", "ana")
    with pytest.raises(DataError, match=r"nowhere: no such channel in .*; there are champion, staging"):
        releases.show(store, "nowhere", json_output=False)
    assert len(history(store, "champion")) == 1


def test_the_list_shows_what_each_points_to_newest_move_first_with_who_why_and_verdict(two, capsys):
    store, a, b = two
    releases.point(store, "staging", "champion", "two days without complaints", "ana")
    releases.roll_back(store, "champion", "complaints about tone", "bo")
    capsys.readouterr()
    releases.show(store, None, json_output=False)
    champion, staging = capsys.readouterr().out.split("\n\n")
    lines = [" ".join(line.split()) for line in champion.splitlines()]
    day = history(store, "champion")[-1]["when"][:10]
    assert lines[0] == f"champion = release {a.key[:12]} (demo)"
    assert [line[:10] for line in lines if "UTC" not in line and day in line] == [day] * 3
    assert [line.partition(" ")[2][6:] for line in lines[2::2]] == [
        f"rolled back {a.key[:12]} bo: complaints about tone",
        f"promoted {b.key[:12]} ana: two days without complaints",
        f"promoted {a.key[:12]} run demo-1: released by plan demo",
    ]
    assert lines[3::2] == ["✅ pass: 2 of 2 gates hold"] * 3
    assert staging.startswith(f"staging = release {b.key[:12]} (demo)")


def test_a_long_history_is_cut_in_the_list_and_whole_for_its_channel(two, capsys):
    store, a, b = two
    for number in range(6):
        releases.point(store, (a, b)[number % 2 == 0].key, "champion", f"move {number}", "ana")
    capsys.readouterr()
    releases.show(store, None, json_output=False)
    assert "2 earlier: align releases champion" in capsys.readouterr().out
    releases.show(store, "champion", json_output=False)
    printed = capsys.readouterr().out
    assert "earlier" not in printed
    assert printed.count("promoted") == 7


def test_a_history_outlives_its_releases_and_machines_get_all_of_it(two, capsys):
    store, a, _b = two
    remove(a.path)
    releases.show(store, "champion", json_output=True)
    found = json.loads(capsys.readouterr().out)
    assert found == {"champion": [{**history(store, "champion")[0], "name": None, "verdict": None}]}
    releases.show(store, None, json_output=False)
    assert "the release is gone" in capsys.readouterr().out
