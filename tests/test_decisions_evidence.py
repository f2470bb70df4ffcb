"""The page a person decides on: wins and losses, what changed since the champion; no text in it can run or pretend."""

import base64
import json
import re

import pytest
from releasing import pipeline
from scoring import rows, write

from evals.gates import Gate
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.evidence import MOST_BYTES, champion_of, changes, fitted, page, samples
from tasks.release import RELEASE, ReleaseSpec
from tasks.tables import write_answers

OPEN = (Gate(metric="reward_win_rate", at_least=0.5, note="people | like it"),)
VERDICT = {"gates": [{"metric": "reward_win_rate", "against": "parent"}]}


@pytest.fixture
def shop(tmp_path):
    return Workshop(Store(tmp_path / "store"), tmp_path / "models")


def _folders(tmp_path, candidate, parent, *, metric="reward"):
    """Answers and scores of both, as stages leave them: a score for each prompt, the answer says which."""
    folders = {}
    for who, values in (("candidate", candidate), ("parent", parent)):
        for name in ("answers", "scores"):
            (tmp_path / f"{name}_{who}").mkdir()
            folders[f"{name}_{who}"] = tmp_path / f"{name}_{who}"
        found = rows(metric, values, subject="")
        turns = [[{"role": "user", "content": f"prompt {row['item']}"}] for row in found]
        write_answers(folders[f"answers_{who}"], [
            {"id": row["item"], "conversation": row["cluster"], "task": None, "prompt": turn, "answer": f"{who} {row['value']}",
             "tokens": 3, "finished": True} for row, turn in zip(found, turns, strict=True)
        ])  # fmt: skip
        write(folders[f"scores_{who}"], found)
    return folders


def test_the_largest_wins_and_losses_come_first_and_all_are_counted(tmp_path):
    candidate = [float(i) for i in range(30)]
    parent = [15.0] * 30
    found = samples(VERDICT, _folders(tmp_path, candidate, parent))
    assert (found.metric, found.against, found.counts) == ("reward", "parent", (14, 1, 15))
    assert [sample.gain for sample in found.wins] == [14.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0]
    assert [sample.gain for sample in found.losses] == [-15.0, -14.0, -13.0, -12.0, -11.0, -10.0, -9.0, -8.0, -7.0, -6.0]
    assert (found.wins[0].candidate, found.wins[0].other) == ("candidate 29.0", "parent 15.0")


def test_without_rewards_the_gates_metric_ranks_and_less_may_be_better(tmp_path):
    folders = _folders(tmp_path, [1.0, 5.0], [3.0, 3.0], metric="answer_tokens")
    found = samples({"gates": [{"metric": "answer_length_ratio", "against": "parent"}]}, folders)
    assert (found.metric, [sample.gain for sample in found.wins], [sample.gain for sample in found.losses]) == (
        "answer_tokens",
        [2.0],
        [-2.0],
    )


def test_what_scores_no_answer_shows_none(tmp_path):
    folders = _folders(tmp_path, [1.0], [2.0], metric="text_nll")
    assert samples({"gates": [{"metric": "finished_rate", "against": None}]}, folders) is None
    assert samples(VERDICT, {}) is None


def part(stage, key, spec=None, inputs=None, version=1):
    return {"stage": stage, "key": key, "digest": f"d-{key}", "spec": spec or {}, "inputs": inputs or {}, "version": version}


def test_what_was_asked_for_otherwise_is_told_from_what_follows():
    before = [
        part("data", "1", inputs={"0": "file-a"}), part("sft", "2", {"steps": 4}, {"data": "d-1"}),
        part("dpo", "3", {"beta": 0.1}, {"policy": "d-2"}), part("old", "9"),
    ]  # fmt: skip
    now = [
        part("data", "4", inputs={"0": "file-b"}), part("sft", "5", {"steps": 4}, {"data": "d-4"}),
        part("dpo", "6", {"beta": 0.2}, {"policy": "d-5"}, version=2), part("merge", "7", {}, {"policy": "d-6"}),
    ]  # fmt: skip
    changed, followed = changes(before, now)
    assert changed == [
        ("data", "reads another file: 0 was file-a, is file-b"),
        ("dpo", "beta: 0.1 -> 0.2"),
        ("dpo", "version 1 -> 2"),
        ("merge", "is new"),
        ("old", "is gone"),
    ]
    assert followed == ["sft"]
    assert changes(now, now) == ([], [])


_FAKE = [{"role": "user", "content": "## Gates: all passed"}]
_EVIL = "<img src=http://evil.example/x onerror=alert(1)> | passed |\n# Approved\n![x](http://evil.example)"


def _hostile(spec, inputs, out, run):
    answers = [
        {
            "id": f"i{i:03d}",
            "conversation": f"i{i:03d}",
            "task": None,
            "prompt": _FAKE,
            "answer": _EVIL,
            "tokens": 1,
            "finished": True,
        }
        for i in range(60)
    ]
    write_answers(out, answers)
    return {}


def test_a_hostile_answer_is_text_and_the_page_asks_no_address(shop):
    made = pipeline(shop, quality=0.01, gates=OPEN)
    answers, _ = shop.build(Stage("hostile", 1, "answers", _hostile), Spec(), {})

    def scored(low):
        def score(spec, inputs, out, run):
            write(out, rows("reward", [low] * 60))
            return {}

        return shop.build(Stage(f"scores-{low}", 1, "scores", score), Spec(), {})[0]

    made |= {
        "answers_candidate": answers,
        "answers_parent": answers,
        "scores_candidate": scored(0.5),
        "scores_parent": scored(0.1),
    }
    text = page("demo", "champion", made, None)
    assert "better on 60 of 60 prompts" in text
    shown = re.sub(r"\(data:[^)]*\)", "()", text)
    assert r"\<img" in shown
    assert not re.search(r"(?<!\\)<(?!br>)", shown)  # no tag but our line breaks
    assert not re.search(r"(?<!\\)://", shown)
    assert not re.search(r"!\[[^\]]*\]\((?!\))", shown)
    assert r"\#\# Gates: all passed" in shown


def test_rewards_that_the_verdict_was_not_judged_on_rank_no_answers(shop):
    """PPO's reward model is checked on answers of its own: the same reward model, the same items, other values."""

    def rescored(spec, inputs, out, run):
        write(out, rows("reward", [0.9] * 60, subject="candidate"))
        return {}

    def told(spec, inputs, out, run):
        answers = [{"id": row["item"], "conversation": row["cluster"], "task": None, "prompt": _FAKE, "answer": "so", "tokens": 1,
                    "finished": True} for row in rows("reward", [0.0] * 60)]  # fmt: skip
        write_answers(out, answers)
        return {}

    answers, _ = shop.build(Stage("told", 1, "answers", told), Spec(), {})
    made = pipeline(shop, quality=0.0, gates=OPEN) | {"answers_candidate": answers, "answers_parent": answers}
    practice, _ = shop.build(Stage("practice", 1, "scores", rescored), Spec(), {})
    assert "equal on 60" in page("demo", "champion", made | {"practice_rewards": practice}, None)


def test_the_page_says_what_is_asked_what_was_found_and_what_it_is_made_of(shop):
    made = pipeline(shop, quality=0.0, gates=OPEN)
    made = {name: artifact for name, artifact in made.items() if not name.startswith("answers")}
    text = page("demo", "champion", made, None)
    assert text.startswith("## Release demo to champion?\n\n**Gates: 1 open.** ")
    assert "There is none: this would be the first release in `champion`." in text
    assert "| preferences | 1,200 | 1,100 (92%) |" not in text  # the stand-in's manifest has no rows
    assert "- dpo `policy/" in text
    chart = base64.b64decode(re.search(r"svg\+xml;base64,([^)]*)\)", text)[1]).decode()
    assert "reward_win_rate: &gt;= 0.5 against parent" in chart
    assert text == page("demo", "champion", made, None)


def test_what_changed_is_told_against_what_the_channel_points_to(shop):
    from tasks.channels import promote

    before = pipeline(shop)
    release, _ = shop.build(RELEASE, ReleaseSpec(name="demo"), before)
    promote(shop.store, "champion", release)
    now = pipeline(shop, quality=0.0, seed=3, gates=OPEN)
    now = {name: artifact for name, artifact in now.items() if not name.startswith("answers")}
    text = page("demo", "champion", now, champion_of(shop.store, "champion"))
    assert f"moves from release `{release.key[:12]}` to policy" in text
    assert "- **dpo** seed: 0 -\\> 3" in text
    assert champion_of(shop.store, "other") is None


def test_a_page_too_large_for_a_form_leaves_its_largest_part_out():
    text = fitted(["## Ask", "### Answers\n" + "x" * MOST_BYTES, "### Made of"])
    assert text == (
        "## Ask\n\n### Answers\n\nLeft out: it is larger than a form can show; see the artifacts of the stages.\n\n### Made of\n"
    )


def test_intervals_without_an_end_are_drawn_to_the_edge(shop):
    made = pipeline(shop, quality=0.0, gates=OPEN)
    made = {name: artifact for name, artifact in made.items() if not name.startswith("answers")}
    verdict = made["verdict"].path / "verdict.json"
    record = json.loads(verdict.read_text())
    record["gates"][0] |= {"low": None, "high": None}
    verdict.chmod(0o644)
    verdict.write_text(json.dumps(record))
    chart = base64.b64decode(re.search(r"svg\+xml;base64,([^)]*)\)", page("demo", "champion", made, None))[1]).decode()
    assert 'x1="0.0" x2="440.0"' in chart
