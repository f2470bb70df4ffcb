"""`align report` and the report that every run leaves, however it ends."""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from reporting import run

from flows.report import find, place, publish, write
from flows.serving import reports
from tasks.core.errors import SpecError


@pytest.fixture
def recorded(tmp_path):
    return run(tmp_path)


def test_a_run_is_found_by_its_names_and_a_plan_by_its_last_run(recorded, tmp_path):
    store, record = recorded
    later = record | {
        "run": "demo-20270101-000000-9",
        "called": "later",
        "flow_run": "1" * 8,
        "started": "2027-01-01T00:00:00+00:00",
    }
    other = later | {
        "run": "other-1",
        "called": "x",
        "flow_run": "2" * 8,
        "plan": {"name": "other"},
        "started": "2028-01-01T00:00:00+00:00",
    }
    for one in (later, other):
        (store.folder("runs") / f"{one['run']}.json").write_text(json.dumps(one))
    (tmp_path / "plan.yaml").write_text("name: demo\n")
    assert find(store, record["run"])["run"] == record["run"]
    assert find(store, record["called"])["run"] == record["run"]
    assert find(store, record["flow_run"])["run"] == record["run"]
    assert find(store, str(tmp_path / "plan.yaml"))["run"] == later["run"]
    with pytest.raises(SpecError, match=r"no run recorded in .* is called so; the last one is other-1"):
        find(store, "nobody")
    (tmp_path / "plan.yaml").write_text("name: unknown\n")
    with pytest.raises(SpecError, match="no run of unknown is recorded"):
        find(store, str(tmp_path / "plan.yaml"))


def test_it_is_written_beside_the_record_or_where_one_says_with_equal_bytes(recorded, tmp_path):
    store, record = recorded
    beside = write(store, record)
    assert beside == place(store, record["run"]) == store.root / ".runs" / f"{record['run']}.html"
    elsewhere = write(store, record, tmp_path / "new" / "page.html")
    assert elsewhere.read_bytes() == beside.read_bytes()


def test_the_server_shows_reports_and_no_other_file(recorded, event_loop_run):
    store, record = recorded
    write(store, record)
    answer = reports(store.root)

    def get(name, **headers):
        return event_loop_run(answer(SimpleNamespace(path_params={"name": name}, headers=headers)))

    shown = get(f"{record['run']}.html")
    assert shown.status_code == 200
    assert shown.headers["content-security-policy"].startswith("default-src 'none'")
    for name in (f"{record['run']}.json", "../x.html", "nothing.html", ".html"):
        assert get(name).status_code == 404

    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, temporary_settings

    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "ana:secret"}):  # Prefect asks for it before its API alone
        assert get(f"{record['run']}.html").status_code == 401
        wrong, right = (f"Basic {base64.b64encode(text).decode()}" for text in (b"ana:guess", b"ana:secret"))
        assert get(f"{record['run']}.html", Authorization=wrong).status_code == 401
        assert get(f"{record['run']}.html", Authorization=right).status_code == 200


@pytest.fixture
def event_loop_run():
    import asyncio

    return asyncio.run


def test_the_page_on_the_server_names_the_report_and_links_it_only_where_it_is_served(recorded, monkeypatch):
    store, record = recorded
    made = []
    monkeypatch.setattr("prefect.artifacts.create_markdown_artifact", lambda text, **more: made.append((text, more)))
    for served in (False, True):
        monkeypatch.setattr("flows.report._served", lambda name, served=served: served)
        publish(store, record)
    (plain, more), (linked, _) = made
    assert more["key"] == "demo-report"
    assert more["description"].startswith("Released: champion points to release ")
    assert plain.startswith("# ✅ Released\n\nchampion points to release ")
    assert f"`align report {record['run']} --open` shows it." in plain
    assert "](" not in plain
    assert f"[**Open the report**](/reports/{record['run']}.html)" in linked


def reported(printed):
    """The report that a command named, as text, and what the line was followed by."""
    _, _, rest = printed.partition("\nreport: ")
    path, _, after = rest.partition("\n")
    return Path(path).read_text(encoding="utf-8"), after


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_run_leaves_its_report_however_it_ends_and_one_with_nothing_to_do_leaves_none(smoke, tmp_path):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = tmp_path / "copy"
    shutil.copytree(smoke.folder, folder, symlinks=True)
    copy = replace(smoke, folder=folder)
    first, _, size = copy.align("report", "plan.yaml").partition("  (")
    assert size.endswith("KiB)\n")
    assert "<span>Released</span>" in Path(first).read_text()

    before = sorted((copy.store / ".runs").glob("*.html"))
    copy.align("run", "plan.yaml")
    assert sorted((copy.store / ".runs").glob("*.html")) == before

    page, after = reported(copy.align("run", "plan.yaml", "--set", "gates.0.at_most=0.5", code=3))
    assert "<span>Not released</span>" in page
    assert "Failed: text_perplexity_ratio is " in page
    assert after.startswith("GateError: ")
    with temporary_settings({PREFECT_API_URL: smoke.server}), get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["smoke-report"])))
    assert any(artifact.data.startswith("# ❌ Not released\n") for artifact in found)

    (folder / "preferences.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n' * 3)
    page, _ = reported(copy.align("run", "plan.yaml", code=2))
    assert "<span>curate-preferences failed</span>" in page

    [record] = [json.loads(path.read_text()) for path in sorted((copy.store / ".runs").glob("*.json"))][:1]
    assert [step["number"] for step in sorted(record["steps"].values(), key=lambda step: step["number"])] == list(range(1, 20))
    assert all(step["seconds"] >= 0 for step in record["steps"].values())
    assert record["process"]["cpu_seconds"] > 0
    sft = json.loads((copy.store / record["steps"]["sft"]["artifact"] / "manifest.json").read_text())["provenance"]
    assert sft["cpu_seconds"] > 0
    assert sft["peak_bytes"] > 2**26
