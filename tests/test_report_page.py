"""The report of a run: the verdict first, all its parts, no text that can do anything, equal bytes for equal facts."""

import html
import re
from dataclasses import replace

import pytest
from reporting import HOSTILE, run

from tasks.report import brief, report
from tasks.report import page as page_of
from tasks.report_facts import gather
from tasks.report_words import costs, funnels, outcome, tiles

ADDRESS = re.compile(r"""(?:src|href|action|srcset|poster)\s*=\s*+["']?+\s*+(?!#|data:)|url\(\s*+["']?+(?!#)|@import""", re.I)
"""what names an address that is no place on the page and no data in it"""


def tags(page):
    """What a browser takes for markup: the page without its texts."""
    return re.findall(r"<[a-zA-Z/!][^>]*>", page)


def shown(page):
    """What a person reads."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.S))).split())


def test_a_released_run_says_so_first_with_its_numbers(tmp_path):
    store, record = run(tmp_path)
    found = outcome(gather(store, record))
    assert (found.tone, found.word) == ("pass", "Released")
    release = record["steps"]["release"]["artifact"].partition("/")[2]
    assert found.sentence == (
        f"champion points to release {release[:12]}: 2 of 2 gates hold. "
        "Found: reward_win_rate 0.750 (≥\xa00.5 against parent); finished_rate 1.000 (≥\xa00.9)."
    )
    page = report(store, record)
    assert page.index("Released") < page.index("Gates that hold") < page.index('id="gates"') < page.index('id="answers"')
    anchors = ["gates", "changes", "answers", "training", "data", "cost", "lineage", "made"]
    assert re.findall(r'<section id="(\w+)">', page) == anchors
    assert re.findall(r'<li><a href="#(\w+)">', page) == anchors
    assert len(page.encode()) < 1_000_000
    assert page == report(store, record)


@pytest.mark.parametrize(
    ("asked", "tone", "word", "says"),
    [
        ({"status": "GateError", "release": False, "finished": 0.0}, "fail", "Not released",
         "Nothing was released: 1 of 2 gates hold, 1 failed. Failed: finished_rate is 0.000 [0.000,\xa0"),
        ({"status": "suspended", "release": False}, "review", "Waits for a person",
         "Not released yet: 2 of 2 gates hold. This plan asks a person even where every gate holds."),
        ({"status": "Undecided", "release": False, "error": "who?"}, "review", "A person must decide", "Not released yet: "),
        ({"status": "GateError", "release": False, "error": "demo: not released, rejected by bo"}, "fail", "Not released", ""),
        ({"status": "OutOfMemory", "failed": ["dpo"], "error": "dpo: no memory"}, "fail", "dpo failed", "dpo: no memory"),
        ({"status": "GateError", "failed": ["dpo"], "error": "clearance: weak"}, "fail", "Stopped by a check", "clearance: weak"),
        ({"status": "interrupted", "failed": ["dpo"], "error": "SIGTERM"}, "none", "Interrupted", "Stopped in dpo"),
        ({"status": "running", "release": False}, "none", "Running", "This run had not ended"),
    ],
)  # fmt: skip
def test_every_end_has_its_word(tmp_path, asked, tone, word, says):
    store, record = run(tmp_path, **asked)
    facts = gather(store, record)
    found = outcome(facts)
    assert (found.tone, found.word) == (tone, word)
    assert found.sentence.startswith(says)
    page = shown(report(store, record))
    assert word in page
    if asked.get("error"):
        assert asked["error"] in page
    said, markdown = brief(store, record)
    assert said.startswith(f"{word}: ")
    assert word in markdown


def test_no_text_of_data_or_models_is_more_than_text(tmp_path):
    store, record = run(tmp_path, text=HOSTILE)
    page = report(store, record)
    assert "evil.example" in page  # it is shown
    assert "\u202e" not in page
    found = tags(page)
    assert not [
        tag for tag in found if re.match(r"</?(script|img|iframe|object|embed|link|base|form)\b|<[^>]*\son\w+\s*=", tag, re.I)
    ]
    assert not [tag for tag in found if ADDRESS.search(tag)]
    assert page.count("<style>") == 1
    assert not ADDRESS.search(re.search(r"<style>(.*?)</style>", page, re.S)[1])
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    markdown = brief(store, record)[1]
    assert "http://" not in markdown


def test_a_secret_of_the_environment_is_not_in_the_page(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    store, record = run(tmp_path)
    record["plan"]["note"] = "hf_abcdefghijkl"
    assert "hf_abcdefghijkl" not in report(store, record)


def test_rows_are_shown_as_kept_and_refused_by_rule(tmp_path):
    store, record = run(tmp_path)
    [one] = funnels(gather(store, record))
    assert [(part["what"], part["said"], round(part["share"], 2)) for part in one["parts"]] == [
        ("train", "900 to train on", 75.0), ("held-out", "200 held out", 16.67), ("refused", "100 refused", 8.33),
    ]  # fmt: skip
    assert one["rules"] == [("empty <answer>", "90", "0"), ("tie", "10", "4")]
    page = shown(report(store, record))
    assert "1,100 of 1,200 rows kept (91.7%), 900 to train on, 200 held out, 100 refused; 4 items of kept rows dropped" in page
    assert "dpo 900 880 7 no answer 20" in page


def test_cost_counts_what_this_run_built_and_the_flow_itself(tmp_path):
    store, record = run(tmp_path)
    lines, totals = costs(gather(store, record))
    assert [line["name"] for line in lines] == list(record["steps"])  # as the plan asks for them
    found = {line["name"]: (line["said"], line["wall"], line["cpu"], line["peak"]) for line in lines}
    assert found["sft"] == ("from the store", "15.0 s", "12.5 s", "3.00 GiB")
    assert found["dpo"] == ("built", "22.5 s", "12.5 s", "3.00 GiB")
    assert found["verdict"][2:] == ("-", "-")
    seconds = sum(step["seconds"] for name, step in record["steps"].items() if name != "sft")
    assert totals["wall"] == f"{seconds // 60:.0f} m {seconds % 60:02.0f} s"
    assert (totals["cpu"], totals["peak"], totals["elapsed"]) == ("17.0 s", "3.00 GiB", "20 m 00 s")
    assert ("Peak memory", "3.00 GiB", "in dpo") in tiles(gather(store, record))


def test_what_is_gone_since_leaves_the_rest_readable(tmp_path):
    import shutil

    store, record = run(tmp_path)
    for name in ("answers-parent", "curate-preferences", "dpo"):
        shutil.rmtree(store.root / record["steps"][name]["artifact"])
    page = report(store, record)
    assert re.findall(r'<section id="(\w+)">', page) == ["gates", "changes", "training", "cost", "lineage", "made"]
    assert "gone since" in page


def test_the_next_release_is_compared_with_the_one_before(tmp_path):
    store, record = run(tmp_path)
    assert gather(store, record).before is None
    assert "there is no release to compare with" in shown(report(store, record))
    later, again = run(tmp_path, text="Say something else.")
    again["started"] = "2999-01-01T00:00:00+00:00"
    again["steps"]["release"]["artifact"] = None
    facts = gather(later, again)
    assert facts.before is not None
    assert facts.changes is not None
    assert facts.changes.since == facts.before


def test_a_run_with_nothing_new_and_one_that_did_not_move_the_channel_say_so(tmp_path):
    store, record = run(tmp_path)
    night = record | {"started": "2026-01-03T03:00:00+00:00", "finished": "2026-01-03T03:00:09+00:00"}
    assert "champion pointed to this very release already" in shown(report(store, night))
    assert outcome(gather(store, night)).word == "Released"
    early = record | {"finished": "2026-01-02T03:10:00+00:00"}  # before the channel moved
    found = outcome(gather(store, early))
    assert found.word == "Released, not in its channel"
    assert "and champion points to nothing: this run did not move it" in found.sentence


def test_a_run_of_another_flow_has_the_parts_it_has(tmp_path):
    store, record = run(tmp_path)
    record |= {"flow": "search", "plan": {"name": "demo"}}
    record["steps"] = {name: step for name, step in record["steps"].items() if name in ("curate-preferences", "sft")}
    page = report(store, record)
    assert re.findall(r'<section id="(\w+)">', page) == ["training", "data", "cost", "lineage", "made"]
    assert outcome(gather(store, record)).word == "Completed"


def test_pictures_and_tables_that_a_stage_wrote_are_shown_inside(tmp_path):
    from tasks.report import _rendered

    (tmp_path / "plot.png").write_bytes(b"\x89PNG")
    table = "| a | b |\n|---|---:|\n| [x](http://evil.example) | 1.5 [1.25, 2] |"
    text = f"# ✅ fine <script>x</script>\n\n{table}\n\n![plot](plot.png) ![no](http://evil.example/x.png)\n"
    (tmp_path / "page.md").write_text(text)
    found = str(_rendered(tmp_path / "page.md"))
    assert found.startswith('<h3><span class="mark pass" role="img" aria-label="holds"><svg')
    assert "&lt;script&gt;" in found
    assert 'src="data:image/png;base64,iVBORw=="' in found
    assert not [tag for tag in tags(found) if ADDRESS.search(tag)]
    assert '<td style="text-align:right">1.5 [1.25,\xa02]</td>' in found


def test_a_search_of_many_trials_stays_a_page(tmp_path, monkeypatch):
    store, record = run(tmp_path)
    monkeypatch.setattr("tasks.report._MOST_BOXES", 3)
    monkeypatch.setattr("tasks.report._MOST_TRAININGS", 1)
    page = report(store, record)
    assert 'id="lineage"' not in page
    assert "1 more trainings are not drawn here" in shown(page)


def test_who_approved_is_said_with_the_verdict(tmp_path):
    store, record = run(tmp_path)
    facts = gather(store, record)
    approval = {"by": "ana", "when": "2026-01-02T03:20:00+00:00", "why": "reads <better>"}
    found = replace(facts, release={**facts.release, "approval": approval})
    assert outcome(found).more == ("Approved by ana on 2026-01-02 03:20 UTC: reads <better>",)
    assert "Approved by ana on 2026-01-02 03:20 UTC: reads &lt;better&gt;" in page_of(found)


def test_suites_have_a_part_of_their_own(tmp_path):
    store, record = run(tmp_path)
    facts = gather(store, record)
    row = {"metric": "gsm8k.exact_match", "against": None, "unit": "share", "better": "higher", "estimate": 0.25, "low": 0.125,
           "high": 0.375, "items": 1200, "meaning": "right answers"}  # fmt: skip
    page = shown(page_of(replace(facts, verdict={**facts.verdict, "measured": [*facts.verdict["measured"], row]})))
    assert "gsm8k.exact_match 0.250 [0.125, 0.375] 1,200 share higher" in page
    assert 'id="suites"' not in page_of(facts)


def test_steps_of_a_record_from_before_they_were_numbered_come_inputs_first(tmp_path):
    store, record = run(tmp_path)
    for step in record["steps"].values():
        del step["number"], step["seconds"]
    steps = gather(store, record).steps
    place = {step.artifact.digest: number for number, step in enumerate(steps)}
    assert all(
        place[digest] < number for number, step in enumerate(steps) for digest in step.artifact.inputs.values() if digest in place
    )
    assert steps[0].cost.seconds == steps[0].artifact.provenance["seconds"]
