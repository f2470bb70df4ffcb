"""The engine: one base, a policy per request; answers equal those of the answers stage, streamed, batched, cancelled, refused."""

import os
import signal
import subprocess
import sys
import threading
import time

import pyarrow.parquet as pq
import pytest
from tiny import write_rows

from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, MachineError
from tasks.generate import AnswersSpec
from tasks.serving import Engine, Request
from tasks.training import generate

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WORDS = ["red", "what is the colour of the sky please", "two birds", "thank you dog maybe"]
NAMES = ["lora", "ia3", "prefix_tuning"]


@pytest.fixture(scope="module")
def engine(shop, sft_policies):
    with Engine(shop.models, Execution(device="cpu", threads=1)) as engine:
        loaded = [engine.load(name, sft_policies(name)) for name in NAMES]
        assert [item.shares for item in loaded] == [False, True, True]
        assert [item.chain for item in loaded] == [[f"sft {name}"] for name in NAMES]
        yield engine


def asked(text, **more):
    return Request.model_validate({"messages": [{"role": "user", "content": text}], "max_new_tokens": 12, **more})


@pytest.mark.parametrize("name", [*NAMES, None])
def test_an_answer_is_the_one_the_policy_gives_alone(engine, shop, sft_policies, tmp_path, name):
    policy = sft_policies(name) if name else shop.policy
    run = Run(tmp_path, shop.models, Execution(device="cpu"))
    rows = [
        {"id": str(i), "conversation": str(i), "task": None, "prompt": asked(words).messages} for i, words in enumerate(WORDS)
    ]
    prompts = write_rows(tmp_path / "prompts", "prompts", rows)
    generate.run(AnswersSpec(max_new_tokens=12), {"policy": policy, "prompts": prompts}, tmp_path, run)
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    answers = [engine.ask(asked(row["prompt"][0]["content"], adapter=name)) for row in rows]
    done = [answer.wait() for answer in answers]
    assert [(item.text, item.tokens, item.finished) for item in done] == [
        (row["answer"], row["tokens"], row["finished"]) for row in rows
    ]


def test_requests_of_several_policies_at_once_each_get_their_own_answer(engine):
    one_by_one = {name: engine.ask(asked("red dog", adapter=name, temperature=1.0)).wait().text for name in NAMES}
    assert len(set(one_by_one.values())) == len(NAMES)
    answers = [(name, engine.ask(asked("red dog", adapter=name, temperature=1.0))) for name in NAMES * 5]
    assert [(name, answer.wait().text) for name, answer in answers] == [(name, one_by_one[name]) for name in NAMES * 5]


def test_two_policies_speak_in_turns_and_say_what_they_say_alone(engine):
    requests = [asked("red dog", adapter=name, temperature=2.0, max_new_tokens=200) for name in NAMES]
    alone = [engine.ask(request).wait().text for request in requests]
    first, second, third = (engine.ask(request) for request in requests)
    pieces = iter(second)
    start = next(pieces)
    assert first in engine._answers.values()  # it is not over yet
    assert [first.wait().text, start + "".join(pieces), third.wait().text] == alone


def test_the_pieces_are_the_text_and_come_one_by_one(engine):
    answer = engine.ask(asked("blue sky", adapter="lora", temperature=2.0, seed=3, max_new_tokens=60))
    pieces = list(answer)
    assert answer.done is not None
    assert "".join(pieces) == answer.done.text
    assert len(pieces) > 10


def test_the_same_request_has_the_same_answer_whatever_is_asked_beside_it(engine):
    request = asked("green cat", adapter="lora", temperature=1.0, seed=5)
    alone = engine.ask(request).wait().text
    beside = [engine.ask(asked("two birds says", adapter="lora", temperature=1.0, seed=seed)) for seed in range(6)]
    assert engine.ask(request).wait().text == alone
    assert len({answer.wait().text for answer in beside}) > 1
    assert engine.ask(asked("green cat", adapter="lora", temperature=1.0, seed=6)).wait().text != alone


def test_a_cancelled_answer_ends_and_the_next_one_comes(engine):
    answer = engine.ask(asked("one two three", adapter="lora", temperature=3.0, max_new_tokens=200))
    next(iter(answer))
    answer.cancel()
    done = answer.wait()
    assert done.cancelled
    assert 0 < done.tokens < 200
    assert engine.ask(asked("one", adapter="lora")).wait().tokens > 0


def test_what_cannot_be_answered_is_refused_alone(engine):
    good = engine.ask(asked("red", adapter="lora"))
    long = engine.ask(asked("red " * 300, adapter="lora"))
    unknown = engine.ask(asked("red", adapter="nobody"))
    assert good.wait().tokens > 0
    with pytest.raises(DataError, match="exceed the model's 256 positions"):
        long.wait()
    with pytest.raises(DataError, match="nobody: no such adapter is loaded; there are lora, ia3, prefix_tuning"):
        unknown.wait()


def test_a_dead_child_is_a_machine_error_for_whoever_waits(shop, sft_policies):
    with Engine(shop.models, Execution(device="cpu", threads=1)) as engine:
        engine.load("lora", sft_policies("lora"))
        answer = engine.ask(asked("red", adapter="lora", temperature=3.0, max_new_tokens=200))
        killer = threading.Timer(0.01, os.kill, (engine.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(MachineError, match="the model's process ended"):
            while time.sleep(0) is None:
                answer.wait()
                answer = engine.ask(asked("red", adapter="lora", max_new_tokens=200))
        killer.join()


def test_this_process_never_imports_torch():
    code = "import sys, tasks.serving; print('torch' in sys.modules, 'prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
