"""Learning task after task: a later task makes an earlier one worse, replay makes that smaller, separate adapters forget nothing.

Everything but the child process is real: curation, training, scoring and the matrix, on the tiny model, in this process.
"""

import json
from importlib import import_module

import pytest
import tiny
from lessons import ANSWERS, LORA, PLAN, write_task

from flows.continual import lessons
from flows.continual_plan import ContinualPlan
from flows.loading import load_as
from tasks.continual import read_forgetting
from tasks.core.contract import Execution
from tasks.core.errors import SpecError

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lessons")
    tiny.write_model(folder / "tiny")
    for name in ANSWERS:
        write_task(folder, name)
    (folder / "plan.yaml").write_text(PLAN)
    return folder


@pytest.fixture(scope="module")
def learn(folder, request):
    """`learn(fields...)` runs the plan with fields set, in this process; its record, and the names of the stages built."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("ALIGN_STORE", str(folder / "store"))
    patch.setenv("ALIGN_MODELS", str(folder / "models"))
    patch.setattr("tasks.base.run_child", lambda job, *rest: import_module(f"tasks.training.{job}").run(*rest))

    def run(*overrides):
        plan = load_as(ContinualPlan, folder / "plan.yaml", overrides)
        shop, built = plan.workshop(), []

        def build(stage, spec, inputs, *, name=None):
            artifact, new = shop.build(stage, spec, inputs)
            built.extend([name or stage.name] if new else [])
            return artifact

        return read_forgetting(lessons(plan, build).path), built

    return run


def value(record, row, column):
    return record["cells"][row][column]["value"]


def test_a_second_task_makes_the_first_worse_and_replay_makes_that_smaller(learn):
    plain, _ = learn()
    assert value(plain, 1, 0) < 0.5 * value(plain, 0, 0), "the first task was not learned"
    assert value(plain, 2, 1) < 0.5 * value(plain, 0, 1), "the second task was not learned"
    lost = plain["cells"][2][0]["ratio"]
    assert lost["low"] > 1.2, "the first task was not measurably forgotten"
    assert plain["averages"]["average_forgetting"]["low"] > 0
    assert plain["averages"]["backward_transfer"]["high"] < 0
    mixed, _ = learn("replay=0.3")
    assert value(mixed, 1, 0) == value(plain, 1, 0)  # the same first task, from the store
    kept = mixed["cells"][2][0]["ratio"]
    assert kept["high"] < lost["low"], "replay did not measurably help"
    assert value(mixed, 2, 1) < 0.5 * value(plain, 0, 1), "with replay the second task was not learned"


def test_one_more_task_at_the_end_trains_one_more_and_measures_what_is_new(learn, folder):
    learn()
    more = "tasks=" + json.dumps(
        [{"name": name, "data": {"sources": [f"{name}.jsonl"], "heldout": 0.3}} for name in ("birds", "colours", "dogs")]
    )
    record, built = learn(more)
    assert sorted(built) == sorted(
        ["curate-dogs", "sft-dogs", "forgetting", "scores-base-on-dogs", "scores-birds-on-dogs", "scores-colours-on-dogs"]
        + [f"scores-dogs-on-{name}" for name in ANSWERS]
    )
    assert (len(record["cells"]), record["rows"][-1]) == (4, "after dogs")


def test_adapters_of_their_own_forget_nothing_and_can_be_put_together(learn):
    record, built = learn("fresh=true", "compose={weights: [1.0, 1.0]}", LORA)
    assert "scores-birds-on-colours" not in built
    assert value(record, 2, 0) == value(record, 1, 0)
    assert value(record, 1, 1) == value(record, 0, 1)
    assert record["cells"][2][0]["ratio"]["value"] == 1.0
    assert record["averages"]["average_forgetting"]["value"] == 0
    assert record["rows"] == ["base", "after birds", "after colours", "composed"]
    assert value(record, 3, 0) < value(record, 0, 0)
    assert value(record, 3, 0) != value(record, 1, 0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["replay=0.2", "fresh=true", LORA], "each task has an adapter of its own and forgets nothing"),
        (["compose={weights: [1, 1]}"], "there is one policy that goes on"),
        (["fresh=true", "compose={weights: [1, 1, 1]}", LORA], "3 for 2 tasks"),
        (["fresh=true"], "full leaves no adapter"),
        (["fresh=true", "sft.method={name: ia3}", "compose={weights: [1, 1]}"], "trained with ia3, which cannot be added"),
        (["tasks.1.name=birds"], "two are called birds"),
        (["tasks.1.sft={max_stepz: 3}"], r"tasks\.colours\.sft\.max_stepz"),
        (["tasks.0.sft={method: {name: prefix_tuning}}"], r"tasks\.colours: .* prefix_tuning, which cannot be merged"),
        (["replai=0.2"], "no such field; did you mean replay"),
    ],
)
def test_plans_that_cannot_be_are_refused_in_a_sentence(folder, overrides, said):
    with pytest.raises(SpecError, match=said):
        load_as(ContinualPlan, folder / "plan.yaml", overrides)


def test_a_task_may_have_a_budget_and_a_shape_of_its_own(folder):
    plan = load_as(ContinualPlan, folder / "plan.yaml", [LORA, "tasks.1.sft={max_steps: 3, method: {name: dora}}"])
    first, second = (plan.training(task) for task in plan.tasks)
    assert (first.max_steps, first.method.name, second.max_steps, second.method.name) == (40, "lora", 3, "dora")
    assert (second.learning_rate, second.global_batch) == (5e-3, 8)
    assert plan.execution == Execution(device="cpu")
