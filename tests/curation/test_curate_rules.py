"""The rules, the split, the report: what is refused and why, and that the same input always gives the same bytes."""

import re
import shutil

import pytest
from curating import SHARED, curate, jsonl, pair

from tasks.core import sql
from tasks.core.build import Workshop
from tasks.core.errors import DataError, SpecError
from tasks.core.files import file_digest, tree
from tasks.core.store import Store
from tasks.curate import FEEDBACK, INSTRUCTIONS, LABELLED, PREFERENCES, PROMPTS, TEXTS, PreferencesSpec

TURN = {"role": "assistant", "content": "a"}


def test_each_rule_refuses_what_it_names(tmp_path):
    long = "x" * 60
    rows = [
        pair("one"), pair("one"), pair("ONE ", "because.  ", "no."), pair("two", "A", "B"), pair("two", "b", "a"),
        pair("three", "same", "same "), pair("four", ""), pair("five", "x", " "), pair(" ", "x", "y"),
        pair("six", "x", "y", chosen_score=1, rejected_score=1), pair("seven", "x", "y", chosen_score=1, rejected_score=2),
        pair("eight", long + "1", long + "2"), pair("nine" * 40), pair("ten", "short", long),
        {"chosen": [{"role": "user", "content": "p"}, TURN], "rejected": [{"role": "user", "content": "q"}, TURN]},
        pair([{"role": "user", "content": "p"}, {"role": "user", "content": "q"}]), pair("eleven", None),
    ]  # fmt: skip
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows), max_prompt_chars=100, max_answer_chars=50)
    assert [row["line"] for row in done.kept] == [1]
    assert done.reasons == [
        (2, "exact duplicate: x.jsonl:1"), (3, "normalised duplicate: x.jsonl:1"), (4, "contradicting pair: x.jsonl:5"),
        (5, "contradicting pair: x.jsonl:4"), (6, "identical sides"), (7, "empty side: chosen"), (8, "empty side: rejected"),
        (9, "empty prompt"), (10, "tie"), (11, "the rejected answer scores higher"), (12, "identical after truncation"),
        (13, "over-long prompt"), (14, "over-long answer"), (15, "prompt not shared"), (16, "roles out of order"),
        (17, "no two answers to compare: found the columns prompt, rejected"),
    ]  # fmt: skip


def test_over_long_rows_can_stay_but_not_pairs_that_truncation_makes_equal(tmp_path):
    rows = [pair("p", "x" * 30, "y" * 30), pair("q", "x" * 30, "x" * 31), pair("r" * 99)]
    done = curate(
        tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows), max_answer_chars=20, max_prompt_chars=9, over_long="keep"
    )
    assert done.reasons == [(2, "identical after truncation")]


@pytest.mark.parametrize(("mode", "lines"), [("exact", [1, 2, 4]), ("normalised", [1, 4]), ("prompt", [1])])
def test_what_counts_as_a_duplicate_is_asked_for(tmp_path, mode, lines):
    rows = [pair("p", "A", "B"), pair("p", "a", "B"), pair("p", "A", "B"), pair("p", "C", "D")]
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows), duplicates=mode)
    assert [row["line"] for row in done.kept] == lines


def test_some_pairs_of_a_record_may_go_while_the_record_stays(tmp_path):
    row = {"prompt": "q", "completions": ["a", "b", ""], "scores": [3, 2, 1]}
    done = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", [row]), sources=[{"pairs": {"take": "all"}}])
    assert [(r["chosen"], r["rejected"]) for r in done.kept] == [("a", "b")]
    assert (done.metrics["rows_in"], done.metrics["rows_kept"], done.metrics["rows_quarantined"]) == (1, 1, 0)
    assert [(r["line"], r["reason"]) for r in done.rows("dropped")] == [(1, "empty side: rejected")] * 2


def test_instruction_rules(tmp_path):
    turns = [("user", "q"), ("assistant", "a"), ("user", ""), ("assistant", "")]
    user, answer, blank, mute = ({"role": role, "content": content} for role, content in turns)
    rows = [{"messages": m} for m in ([user, answer], [user], [answer], [user, user, answer], [blank, answer], [user, mute], [])]
    done = curate(tmp_path, "instructions", jsonl(tmp_path / "x.jsonl", rows))
    assert [reason for _, reason in done.reasons] == [
        "does not end with an answer", "roles out of order", "roles out of order", "empty prompt", "empty answer", "no turns",
    ]  # fmt: skip


def many(count, **more):
    return [pair(f"question {i % (count // 2)}", f"yes {i}", f"no {i}", **more) for i in range(count)]


def test_a_conversation_is_never_on_both_sides_and_rows_stay_on_theirs(tmp_path):
    rows = many(400)
    small = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows[:300]), heldout=0.25)
    large = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", [*rows, *many(100, task="new")]), heldout=0.25)
    held, train = ({row["id"] for row in large.rows(name)} for name in ("heldout", "train"))
    assert {row["id"] for row in small.rows("heldout")} <= held and {row["id"] for row in small.rows("train")} <= train
    first = [{row["prompt"][0]["content"] for row in large.rows(name)} for name in ("train", "heldout")]
    assert not first[0] & first[1] and 25 <= len(first[1]) <= 75  # 50 of 200 are expected
    other = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows), heldout=0.25, seed=1)
    assert {row["id"] for row in other.rows("heldout")} != held


def test_rows_joined_by_a_conversation_id_or_a_first_turn_are_one_conversation(tmp_path):
    rows = [pair("a", "1", "2", conversation_id="x"), pair("b", "1", "2", conversation_id="x"), pair("b", "3", "4",
    conversation_id="y"),
            pair("c", "1", "2", conversation_id="y"), pair("d"), pair(" D", "other", "words")]  # fmt: skip
    kept = curate(tmp_path, "preferences", jsonl(tmp_path / "x.jsonl", rows)).kept
    names = [row["conversation"] for row in kept]
    assert len(set(names[:4])) == 1 and len(set(names[4:])) == 1 and len(set(names)) == 2


@pytest.mark.parametrize("kind", ["instructions", "preferences"])
def test_the_bytes_are_the_same_with_any_number_of_threads(tmp_path, kind):
    rows = [{**row, "output": row["chosen"]} for row in many(4000)]
    path = jsonl(tmp_path / "x.jsonl", rows)
    digests = []
    for threads in (1, 2, 4):
        done = curate(tmp_path, kind, path, threads=threads)
        digests.append({file.name: file_digest(file) for file in tree(done.out)})
    assert digests[0] == digests[1] == digests[2]
    assert {"train.parquet", "heldout.parquet", "quarantine.parquet", "dropped.parquet", "report.json", "report.md"} == set(
        digests[0]
    )


def test_too_many_refusals_fail_with_the_reasons(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [pair("a"), pair("b", "same", "same"), pair("c", "", "x"), pair("d", "", "x")])
    with pytest.raises(
        DataError, match=r"3 of 4 records were refused, more than the quarantine budget of 60%: empty side \(2\), ident"
    ):
        curate(tmp_path, "preferences", path, quarantine_budget=0.6)
    assert curate(tmp_path, "preferences", path, quarantine_budget=0.75).metrics["rows_quarantined"] == 3


def test_two_sources_need_two_names(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", [pair()])
    with pytest.raises(SpecError, match="two are called"):
        curate(tmp_path, "preferences", path, path)


def test_the_report_counts_what_happened(tmp_path):
    path = jsonl(
        tmp_path / "x.jsonl", [pair("a", "long answer", "short"), pair("b|c", "s", "longer"), pair("c", "ab", "cd"), "{"]
    )
    done = curate(tmp_path, "preferences", path)
    assert done.metrics == {
        "rows_in": 4, "rows_kept": 3, "rows_quarantined": 1, "train": 3, "heldout": 0, "dropped": 0, "conversations": 3,
        "longer_chosen_share": 0.5, "mean_extra_chars": 0.333,
    }  # fmt: skip
    assert done.report["rules"] == [{"stage": "read", "rule": "not JSON", "records": 1, "items": 0}]
    assert done.report["sources"][0] == {
        "source": "x.jsonl",
        "shape": "pairs",
        "rows_in": 3,
        "rows_kept": 3,
        "rows_quarantined": 0,
    }
    text = (done.out / "report.md").read_text()
    assert "**4** records read = **3** kept + **1** in quarantine (25.0%)" in text and "right in **50.0%** of the pairs" in text
    assert str(tmp_path) not in text + str(done.report)


def test_sample_rows_keep_their_task(tmp_path):
    done = curate(
        tmp_path, "prompts", jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "task": "math"}, {"prompt": "q", "category": "qa"}])
    )
    assert [row["task"] for row in done.kept] == ["math", "qa"]


def test_a_stage_is_built_once_and_a_changed_sql_text_changes_its_key(tmp_path, monkeypatch):
    workshop = Workshop(Store(tmp_path / "store"), tmp_path)
    path = jsonl(tmp_path / "x.jsonl", [pair(str(i)) for i in range(20)])
    spec = PreferencesSpec(sources=({"name": "x"},))
    first, built = workshop.build(PREFERENCES, spec, {"0": path})
    again, rebuilt = workshop.build(PREFERENCES, spec, {"0": path})
    assert (built, rebuilt, again.digest) == (True, False, first.digest)
    shutil.copytree(sql.SQL, tmp_path / "sql")
    changed_file = tmp_path / "sql/curation/duplicates.sql"
    changed_file.write_text(changed_file.read_text() + "-- changed\n")
    monkeypatch.setattr(sql, "SQL", tmp_path / "sql")
    changed, rebuilt = workshop.build(PREFERENCES, spec, {"0": path})
    assert rebuilt and changed.key != first.key and changed.digest == first.digest


def test_a_database_that_outgrows_its_memory_spills(tmp_path):
    with sql.Database(tmp_path, threads=1, memory="150MB") as database:
        path = tmp_path / "x"
        database._connection.execute(
            "create table t as select range as place, repeat(md5(range::text), 20) as body from range(350000)"
        )
        database._connection.execute("create table u as select * from t order by body")
        assert database.rows("select count(*) from u") == [(350000,)]
    assert not path.exists() and not list(tmp_path.iterdir())


FILES = sorted(sql.SQL.glob("*/*.sql"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_sql_files_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("--"))
    assert re.match(r"-- [A-Z].+\.", header) and text.startswith("-- ")
    stated = re.search(r"Grain: .+?\.\s+(?:-- )?(?:.*?)Reads: (.+?)\.\s+Parameters: (.+?)\.", header, re.DOTALL)
    assert stated, header
    body = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    assert set(re.findall(r"\$[a-z_]+", body)) == set(re.findall(r"\$[a-z_]+", stated[2]))
    own = set(re.findall(r"(?:with|,)\s+([a-z_]+) as \(", body))
    read = set(re.findall(r"(?:from|join)\s+([a-z_]+)", body)) - own - {"distinct"}
    assert read == set(re.split(r",\s*", stated[1]))
    assert ";" not in body and len(re.findall(r"\bselect\s+\*", body.split(")\n\nselect")[-1])) == 0


def test_every_sql_file_belongs_to_a_stage():
    used = {name for stage in (INSTRUCTIONS, PREFERENCES, FEEDBACK, PROMPTS, TEXTS, LABELLED) for name in stage.texts(None)}
    assert used == {f"{path.parent.name}/{path.stem}" for path in FILES}


@pytest.mark.slow
def test_sql_is_linted():
    from sqlfluff.core import FluffConfig, Linter

    result = Linter(config=FluffConfig.from_path(str(sql.SQL.parents[1]))).lint_paths((str(sql.SQL),))
    assert [str(v) for v in result.get_violations()] == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public test data is not beside the checkout")
def test_several_sources_are_one_artifact_with_one_report(tmp_path):
    names = ["llmbar/natural.json", "oasst/en_100_tree.jsonl"]
    done = curate(tmp_path, "preferences", *(SHARED / name for name in names))
    assert {row["source"] for row in done.kept} == {"natural.json", "en_100_tree.jsonl"}
    assert (done.metrics["rows_in"], done.metrics["rows_kept"]) == (199, 199) and done.metrics["train"] + done.metrics[
        "heldout"
    ] == 309
