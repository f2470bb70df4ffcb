"""Two policies beside each other: both hear each prompt, each keeps its own conversation; over an engine that only notes."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from test_chat import Answer, Engine, asked

from flows.chat import Chat, talk
from flows.side_by_side import Pair
from tasks.core.errors import DataError, SpecError


class Two(Engine):
    """Each policy answers with its name first; `interrupt` interrupts the listener once."""

    def ask(self, request):
        self.requests.append(request)
        return Answer(f"{request.adapter} {request.messages[-1]['content']}")


class Broken(Answer):
    def __iter__(self):
        yield from self.pieces[:1]
        raise DataError("the conversation has 300 tokens")


def pair(engine=None):
    said, engine, shared = [], engine or Two(), []
    chats = [Chat(engine, Path, said.append, 64, 0.5, 7, loaded=shared) for _ in range(2)]
    for chat, name in zip(chats, ("champion", "staging"), strict=True):
        chat.load(name)
        chat.adapter = name
    return Pair(*chats), engine, said


def seen(talker, line, width):
    console = Console(file=io.StringIO(), width=width, height=20, highlight=False)
    talker.exchange(line, console)
    return console.file.getvalue()


def test_both_are_asked_the_same_with_the_same_seed_and_settings():
    talker, engine, _ = pair()
    seen(talker, "what is rain", 140)
    seen(talker, "and snow", 140)
    assert asked(engine) == [
        ("champion", ["user: what is rain"]),
        ("staging", ["user: what is rain"]),
        ("champion", ["user: what is rain", "assistant: champion what is rain ", "user: and snow"]),
        ("staging", ["user: what is rain", "assistant: staging what is rain ", "user: and snow"]),
    ]
    assert [(r.seed, r.temperature, r.max_new_tokens) for r in engine.requests] == [(7, 0.5, 64)] * 2 + [(9, 0.5, 64)] * 2


def test_a_wide_terminal_has_two_columns_and_a_narrow_one_one_below_the_other():
    talker, _, _ = pair()
    wide = seen(talker, "rain", 140).splitlines()
    assert len(wide[0]) == 140
    assert [re.sub(" +", " ", line).strip() for line in wide if "─" not in line] == [
        "left champion right staging",
        "champion rain staging rain",
        "2 tokens, 0.0 s 2 tokens, 0.0 s",
    ]
    narrow = seen(talker, "rain", 80).splitlines()
    assert [re.sub(" +", " ", line).strip() for line in narrow] == [
        "left champion",
        "champion rain",
        "2 tokens, 0.0 s",
        "right staging",
        "staging rain",
        "2 tokens, 0.0 s",
    ]


@pytest.mark.parametrize("which", ["left", "l", "champion"])
def test_both_go_on_from_the_answer_that_is_kept_and_part_again(which):
    talker, engine, said = pair()
    seen(talker, "rain", 140)
    assert talker.command(f"/keep {which}")
    assert said[-1] == "both go on from what champion said"
    seen(talker, "why", 140)
    kept = ["user: rain", "assistant: champion rain ", "user: why"]
    assert asked(engine)[2:] == [("champion", kept), ("staging", kept)]
    assert talker.left.turns[-1]["content"] == "champion why "
    assert talker.right.turns[-1]["content"] == "staging why "


def test_commands_reach_both_and_what_is_unclear_is_said():
    talker, engine, said = pair()
    talker.command("/keep left")
    assert said[-1] == "nothing is said yet, so there is nothing to go on from"
    seen(talker, "rain", 80)
    for unclear in ("/keep", "/keep middle"):
        talker.command(unclear)
        assert "/keep left or /keep right" in said[-1]
    talker.command("/system Be brief.")
    talker.command("/right poet")
    assert said[-1] == "poet answers on the right now"
    talker.command("/reset")
    seen(talker, "snow", 80)
    assert asked(engine)[2:] == [(name, ["system: Be brief.", "user: snow"]) for name in ("champion", "poet")]
    talker.command("/dance")
    assert said[-1].startswith("/dance: no such command\n/keep left")
    assert talker.command("/help")
    assert not talker.command("/quit")


def test_an_interrupt_stops_both_and_what_they_said_by_then_counts():
    talker, _, said = pair()
    seen(talker, "interrupt me now", 80)
    assert said[-1] == "stopped"
    assert [chat.turns[-1]["content"] for chat in talker.sides] == ["champion ", "staging "]


@pytest.mark.parametrize("width", [80, 140])
def test_an_answer_that_fails_is_raised_and_neither_conversation_goes_on(monkeypatch, width):
    talker, engine, _ = pair()
    monkeypatch.setattr(engine, "ask", lambda request: (Broken if request.adapter == "staging" else Answer)("a b"))
    with pytest.raises(DataError, match="300 tokens"):
        seen(talker, "rain", width)
    assert talker.left.turns == talker.right.turns == []


def test_nothing_in_an_answer_steers_the_terminal_or_is_read_as_markup():
    talker, _, _ = pair()
    for width in (80, 140):
        out = seen(talker, "[red]x[/red]\x1b[2J\x07", width)
        assert "[red]x[/red]" in out
        assert "\x1b" not in out
        assert "\x07" not in out


def test_a_pipe_gets_both_labelled_and_machines_get_json():
    talker, _, _ = pair()
    out = io.StringIO()
    talker.answer_once("rain", out, json_output=False)
    assert out.getvalue() == "[left: champion]\nchampion rain \n[right: staging]\nstaging rain \n"
    out = io.StringIO()
    talker.answer_once("rain", out, json_output=True)
    told = json.loads(out.getvalue())
    assert told["prompt"] == "rain"
    assert [(one["side"], one["policy"], one["text"], one["tokens"]) for one in told["answers"]] == [
        ("left", "champion", "champion rain ", 2),
        ("right", "staging", "staging rain ", 2),
    ]


@pytest.mark.parametrize(("other", "adapters"), [("champion", []), ("staging", ["poet"])])
def test_two_sides_are_two_names_and_no_adapters_beside_them(monkeypatch, other, adapters):
    monkeypatch.setattr("sys.stdin", io.StringIO("rain"))
    with pytest.raises(SpecError, match="two policies side by side are two names"):
        talk(None, "champion", other, adapters, max_new_tokens=8, temperature=0, seed=0, device="cpu", system="")
