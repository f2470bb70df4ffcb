"""Talking in the terminal: what is typed, what is answered, what switches, what a pipe gets; over an engine that only notes."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from flows import chat as module
from flows.chat import Chat, shown
from tasks.core.errors import DataError, SpecError
from tasks.serving import Done, Loaded


class Engine:
    """Answers with the words it was asked, and notes who was to answer what."""

    def __init__(self):
        self.requests = []
        self.loads = []

    def load(self, name, policy):
        self.loads.append((name, policy))
        return Loaded(shares=len(self.loads) > 1, whole=name == "merged", seconds=0.1, chain=["sft lora"])

    def ask(self, request):
        self.requests.append(request)
        return Answer(request.messages[-1]["content"])


class Answer:
    def __init__(self, text):
        self.pieces, self.done, self.cancelled = [f"{word} " for word in text.split()], None, False
        self.interrupt = "interrupt" in text

    def __iter__(self):
        for number, piece in enumerate(self.pieces):
            if self.interrupt and number == 1 and not self.cancelled:
                raise KeyboardInterrupt
            yield piece
        text = "".join(self.pieces[:1] if self.cancelled else self.pieces)
        self.done = Done(text=text, tokens=len(self.pieces), prompt_tokens=1, finished=True, cancelled=self.cancelled, seconds=0)

    def cancel(self):
        self.cancelled = True

    def wait(self):
        if self.done is None:
            list(self)
        return self.done


@pytest.fixture
def talk(monkeypatch, capsys):
    """Type lines; what was printed, what the program said, and the engine."""

    def typed(*lines):
        heard = iter(lines)

        def read(prompt):
            line = next(heard, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        def find(name):
            if name == "nobody":
                raise DataError("nobody: no artifact has this key")
            return Path("/store") / name

        monkeypatch.setattr("builtins.input", read)
        said, engine = [], Engine()
        chat = Chat(engine, find, said.append, 64, 0.0, 7)
        chat.load("champion")
        chat.adapter = "champion"
        errors = io.StringIO()
        module.converse(chat, Console(file=errors, highlight=False, width=200))
        return capsys.readouterr().out, "\n".join(said) + errors.getvalue(), engine

    return typed


def asked(engine):
    return [(r.adapter, [f"{m['role']}: {m['content']}" for m in r.messages]) for r in engine.requests]


def test_the_conversation_is_kept_and_reset_forgets_it(talk):
    printed, _, engine = talk("one", "two", "/reset", "three")
    assert printed == "one \ntwo \nthree \n"
    assert asked(engine) == [
        ("champion", ["user: one"]),
        ("champion", ["user: one", "assistant: one ", "user: two"]),
        ("champion", ["user: three"]),
    ]
    assert {(r.max_new_tokens, r.temperature) for r in engine.requests} == {(64, 0.0)}


def test_adapters_are_switched_in_the_middle_loaded_once_and_base_is_the_bare_model(talk):
    _, said, engine = talk("one", "/adapter poet", "two", "/adapter base", "three", "/adapter poet", "/adapter")
    assert [adapter for adapter, _ in asked(engine)] == ["champion", "poet", None]
    assert [name for name, _ in engine.loads] == ["champion", "poet"]
    assert "on the weights in memory" in said
    assert said.endswith("  champion\n* poet\n  base")


def test_below_a_whole_model_lies_no_bare_one_so_the_base_is_loaded(talk):
    _, _, engine = talk("/adapter merged", "/adapter base", "one")
    assert [name for name, _ in engine.loads] == ["champion", "merged"]  # the one below champion
    chat = Chat(engine, Path, print, 64, 0.0, 0)
    chat.load("merged")
    chat.switch("base")
    assert [name for name, _ in engine.loads][2:] == ["merged", "base"]
    assert chat.adapter == "base"


def test_instructions_come_first_and_go_again(talk):
    _, _, engine = talk("/system Be brief.", "one", "/system", "two")
    assert [messages[0] for _, messages in asked(engine)] == ["system: Be brief.", "user: one"]


def test_an_interrupt_stops_the_answer_and_not_the_program(talk):
    printed, said, engine = talk("please interrupt me now", KeyboardInterrupt(), "two")
    assert printed == "please two \n"
    assert "stopped" in said
    assert asked(engine)[1][1] == ["user: please interrupt me now", "assistant: please ", "user: two"]


def test_errors_and_unknown_commands_are_said_and_the_talk_goes_on(talk):
    printed, said, _ = talk("/adapter nobody", "/dance", "one", "/quit", "two")
    assert "DataError: nobody: no artifact has this key" in said
    assert "/dance: no such command" in said
    assert "/system TEXT" in said
    assert printed == "one \n"


def test_a_pipe_is_answered_once_and_an_empty_one_refused(capsys):
    chat = Chat(Engine(), Path, print, 64, 0.0, 0)
    chat.answer_once(module._piped("What is rain?\n"), sys.stdout, json_output=False)
    assert capsys.readouterr().out == "What is rain? \n"
    with pytest.raises(SpecError, match="nothing came through the pipe"):
        module._piped(" \n")


def test_nothing_in_an_answer_steers_the_terminal():
    assert shown("a\x1b]0;title\x07b\x9b31m\r\nc\td") == "a]0;titleb31m\nc\td"
