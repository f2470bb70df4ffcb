"""A plan on a schedule while its data change: what is built again, whom the new model meets, and when the channel moves.

The verdicts are the data's doing.  A tiny model learns answers in the small vocabulary that the general text is made of, in as
many steps each time.  Rows of noise that outnumber the good ones take those steps away from it, more good rows widen it.
"""

import json
import random

import pytest
import tiny
from serving_runs import deployed, task_states, until, worker
from smoke import Smoke

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PLAN = """
name: scheduled
model: {base: ./tiny}
data:
  instructions: {sources: [rows.jsonl], heldout: 0.3}
  prompts: {sources: [prompts.jsonl]}
  texts: {sources: [texts.jsonl]}
sft: {method: {name: full}, learning_rate: 0.01, max_steps: 60, global_batch: 8, max_length: 128}
evaluation:
  answers: {max_new_tokens: 8}
gates:
  - {metric: answer_perplexity_ratio, at_most: 1, note: has learned to answer}
  - {metric: text_perplexity_ratio, at_most: 1, against: champion, note: knows text as well as what stands}
schedule: {cron: "* * * * * */20"} # the sixth field is seconds
execution: {device: cpu, parallel: 2, threads: 1}
"""
STAYS = ("base", "curate-prompts", "curate-texts", "answers-parent")
FOLLOWS = (
    "curate-instructions", "sft", "answers-candidate", "metrics",
    "scores-candidate", "scores-parent", "scores-champion", "verdict",
)  # fmt: skip
"""what depends on the rows; what is held out is among them, so the parent and the champion are scored again too"""


@pytest.fixture
def client(prefect_server):
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect_server}), get_client(sync_client=True) as found:
        yield found


def rows(answers, start):
    """A conversation for each answer."""
    asked = tiny.sentences(len(answers), start)
    return [
        {"messages": [{"role": "user", "content": f"{question} {start + i}"}, {"role": "assistant", "content": answer}]}
        for i, (question, answer) in enumerate(zip(asked, answers, strict=True))
    ]


def noise(count):
    draw = random.Random(0)
    return [" ".join("".join(draw.choices("ZQXJKVW0123456789#%", k=5)) for _ in range(4)) for _ in range(count)]


GOOD = rows(tiny.sentences(24, 5), 100)
NOISE = rows(noise(240), 1000)
MORE = rows(tiny.sentences(240, 6), 2000)


def write(path, records):
    """Replace the file at once, as an export should: a run that starts meanwhile reads the one or the other."""
    draft = path.with_suffix(".draft")
    draft.write_text("".join(json.dumps(record) + "\n" for record in records))
    draft.rename(path)


@pytest.fixture
def nightly(tmp_path, prefect_server):
    tiny.write_model(tmp_path / "tiny")
    write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in tiny.sentences(8, 3)])
    write(tmp_path / "texts.jsonl", [{"text": text} for text in tiny.sentences(40, 11)])
    (tmp_path / "plan.yaml").write_text(PLAN)
    return Smoke(tmp_path, prefect_server)


def fired(client, deployment, known):
    """The next run that the schedule starts, when it has ended.

    The schedule is paused from its start on.  What a worker had taken up before is a rerun on the same data, and builds nothing.
    """
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    def runs():
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        return [run for run in client.read_flow_runs(deployment_filter=chosen) if run.id not in known]

    def open_runs():
        """Those that have begun and go on.  Prefect's scheduler may write down, just after a pause, the runs of half an hour that
        it planned just before: those go."""
        left = [run for run in runs() if not run.state.is_final()]
        for run in left:
            if run.state.is_scheduled():
                client.delete_flow_run(run.id)
        return [f"{run.name} {run.state.name}" for run in left if not run.state.is_scheduled()]

    client.resume_deployment(deployment.id)
    until(lambda: any(run.state.is_running() or run.state.is_final() for run in runs()), 120, poll=0.2)
    client.pause_deployment(deployment.id)
    until(lambda: not open_runs(), 150)
    first, *reruns = sorted(runs(), key=lambda one: one.start_time)
    assert all(one.auto_scheduled for one in (first, *reruns))
    for rerun in reruns:
        assert rerun.state.name == first.state.name
        assert "Completed" not in dict(task_states(client, rerun)).values()
    known.update(one.id for one in (first, *reruns))
    return first


def test_on_a_schedule_only_what_changed_is_built_and_the_channel_moves_when_the_champion_is_beaten(nightly, client):
    nightly.align("deploy", "plan.yaml")
    deployment, known = deployed(client, "scheduled"), set()
    data = nightly.folder / "rows.jsonl"
    try:
        with worker(nightly):
            write(data, GOOD)
            first = fired(client, deployment, known)
            assert first.state.name == "Completed", first.state.message
            assert set(dict(task_states(client, first)).values()) == {"Completed"}
            [start] = moves(nightly)
            assert start["by"] == f"run {first.name}"
            assert record(nightly, start)["verdict"]["champion"] is None

            write(data, GOOD + NOISE)
            second = fired(client, deployment, known)
            assert second.state.name == "Failed"
            assert "scheduled: not released, the verdict is fail: text_perplexity_ratio: need <= 1 against champion, got" in (
                second.state.message
            )
            assert dict(task_states(client, second)) == {
                **dict.fromkeys((*STAYS, "answers-champion"), "Cached"),
                **dict.fromkeys((*FOLLOWS, "metrics-champion"), "Completed"),
                "release": "Failed",
            }
            assert moves(nightly) == [start]

            write(data, GOOD + MORE)
            third = fired(client, deployment, known)
            assert third.state.name == "Completed", third.state.message
            assert dict(task_states(client, third)) == {
                **dict.fromkeys((*STAYS, "answers-champion", "metrics-champion"), "Cached"),
                **dict.fromkeys((*FOLLOWS, "release"), "Completed"),
            }
            assert [move["by"] for move in moves(nightly)] == [f"run {first.name}", f"run {third.name}"]
            verdict = record(nightly, moves(nightly)[-1])["verdict"]
            assert verdict["champion"]["release"] == start["release"]
            assert {gate["metric"]: gate["verdict"] for gate in verdict["gates"]} == {
                "answer_perplexity_ratio": "pass",
                "text_perplexity_ratio": "pass",
            }

            again = fired(client, deployment, known)  # nothing is new, and it does not meet itself
            assert again.state.name == "Completed", again.state.message
            assert set(dict(task_states(client, again)).values()) == {"Cached"}
            assert len(moves(nightly)) == 2
    finally:
        client.delete_deployment(deployment.id)


def moves(nightly):
    """The history of the channel, oldest first."""
    return json.loads(nightly.align("releases", "champion", "--json"))["champion"]


def record(nightly, move):
    return json.loads((nightly.store / "release" / move["release"] / "release.json").read_text())
