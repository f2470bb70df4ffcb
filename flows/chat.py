"""`align chat`: talk to a policy in the terminal, switch adapters in the middle of it, or answer one prompt from a pipe.

The model lives in a child; this process draws the terminal and stays ready while the model loads or speaks.  Two policies beside
each other are in `flows.side_by_side`.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console
from rich.text import Text

from flows.adapters import policy_named
from flows.console import duration
from flows.plan_parts import models_folder
from tasks.adapters import policies
from tasks.base import base_request, bring_bases, build_base
from tasks.core.contract import Execution, Run
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.core.store import Store
from tasks.serving import Answer, Engine, Request
from tasks.smollm import NAME as EMBEDDED

BARE = "base"
HELP = """/adapter         list what is loaded
/adapter NAME    go on with another: its key, release or name, or `base`; it is loaded if it is not
/system TEXT     give the assistant its instructions; without TEXT, none
/reset           forget the conversation
/quit            leave (also: end of input)
Ctrl-C           stop the answer"""


@dataclass
class Chat:
    """A conversation and whom it is with."""

    engine: Engine
    find: Callable[[str], Path]
    """name -> folder of a policy whose base is in the model cache"""
    say: Callable[[str], None]
    """a line about the program, never part of an answer"""
    max_new_tokens: int
    temperature: float
    seed: int
    adapter: str | None = None
    """who answers; None: the bare model"""
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    loaded: list[str] = field(default_factory=list[str])
    bare: list[str] = field(default_factory=list[str])
    """the policy, if any, whose bare model answers as `base` without being loaded"""

    @property
    def title(self) -> str:
        """What people call who answers."""
        return self.adapter or BARE

    def load(self, name: str) -> None:
        """Bring the policy called `name` into memory, and say what that took."""
        if name in self.loaded:
            return
        policy = self.find(name)
        self.say(f"loading {name} ...")
        done = self.engine.load(name, policy)
        how = "on the weights in memory" if done.shares else "with weights of its own" if self.loaded else "ready"
        self.say(f"{name}: {', '.join(done.chain) or 'the bare model'}; {how}, {duration(done.seconds)}")
        self.loaded.append(name)
        self.bare[:] = self.bare or ([] if done.whole else [name])

    def switch(self, name: str) -> None:
        """Let `name` answer from now on; the conversation stays."""
        if name == BARE and BARE not in self.loaded and self.bare:
            self.adapter = None
        else:
            self.load(name)
            self.adapter = name

    def ask(self, text: str) -> Answer:
        """Put a question; `keep` takes the exchange into the conversation once it was answered."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        asked = [*head, *self.turns, {"role": "user", "content": text}]
        limits = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature, "seed": self.seed + len(self.turns)}
        return self.engine.ask(Request.model_validate({"adapter": self.adapter, "messages": asked, **limits}))

    def keep(self, text: str, answer: str) -> None:
        """Remember an exchange."""
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def exchange(self, line: str, console: Console) -> None:
        """Ask, print the answer as it comes, and remember it."""
        answer = self.ask(line)
        try:
            printed(answer, console.file)
        except KeyboardInterrupt:
            answer.cancel()
            answer.wait()
            self.say("\nstopped")
        assert answer.done is not None
        self.keep(line, answer.done.text)
        if not answer.done.finished and not answer.done.cancelled:
            self.say(f"cut at {self.max_new_tokens} tokens; --max-new-tokens allows more")

    def answer_once(self, prompt: str, to: IO[str], *, json_output: bool) -> None:
        """Answer what came through a pipe: the text as it comes, or JSON."""
        answer = self.ask(prompt)
        if json_output:
            fields = {"prompt": prompt, "policy": self.title, **answer.wait().model_dump()}
            to.write(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")
        else:
            printed(answer, to)

    def command(self, line: str) -> bool:
        """Do what a line that starts with a slash says; False ends the conversation."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit"):
            return False
        if word == "/reset":
            self.turns.clear()
            self.say("forgotten")
        elif word == "/system":
            self.system = rest
            self.say("instructions taken" if rest else "no instructions")
        elif word == "/adapter" and rest:
            self.switch(rest)
            self.say(f"{rest} answers now")
        elif word == "/adapter":
            for name in [*self.loaded, *([] if BARE in self.loaded else [BARE])]:
                self.say(f"{'*' if name == self.title else ' '} {name}")
        else:
            self.say(HELP if word == "/help" else f"{word}: no such command\n{HELP}")
        return True


def talk(
    store: Store | None,
    name: str,
    other: str | None,
    adapters: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    device: str,
    system: str,
    json_output: bool = False,
) -> None:
    """Load `name`, and `other` beside it or the `adapters`, then converse, or answer what comes through a pipe once."""
    terminal = sys.stdin.isatty()
    _check(name, other, adapters, json_output=json_output, terminal=terminal)
    console = Console(stderr=True, highlight=False)
    execution = Execution.model_validate({"device": device})
    from flows.side_by_side import Pair

    with tempfile.TemporaryDirectory(prefix="align-chat-") as folder:
        run = Run(Path(folder), models_folder(), execution)
        finder = _Finder(store, run)
        first = finder(name)  # says what is wrong before a process is started
        for one in (*adapters, *([other] if other else [])):
            finder(one)
        console.print(Text(f"starting with {name} (policy {first.name[:12]})", style="dim"))
        with Engine(run.models, execution) as engine:

            def chat(*names: str) -> Chat:
                def say(text: str) -> None:
                    console.print(Text(text, style="dim"))

                made = Chat(engine, finder, say, max_new_tokens, temperature, seed, system=system, loaded=loaded, bare=bare)
                for one in dict.fromkeys(names):
                    made.load(one)
                made.adapter = names[-1]
                return made

            loaded, bare = list[str](), list[str]()
            talker: Talker = Pair(chat(name), chat(other)) if other else chat(name, *adapters)
            if terminal:
                converse(talker, console)
            else:
                talker.answer_once(_piped(sys.stdin.read()), sys.stdout, json_output=json_output)


def _check(name: str, other: str | None, adapters: Sequence[str], *, json_output: bool, terminal: bool) -> None:
    """Refuse what does not go together, before anything is looked up."""
    if json_output and terminal:
        raise SpecError(
            '--json: it is for what comes through a pipe; write a prompt into it: echo "What is rain?" | align chat ...'
        )
    if other is not None and (adapters or other == name):
        what = f"--adapter {adapters[0]}" if adapters else name
        raise SpecError(f"{what}: two policies side by side are two names, and switched by /left NAME and /right NAME")


def _piped(prompt: str) -> str:
    if not prompt.strip():
        raise SpecError('nothing came through the pipe; write a prompt into it: echo "What is rain?" | align chat champion')
    return prompt.strip()


class _Finder:
    """Policies by what people call them."""

    def __init__(self, store: Store | None, run: Run) -> None:
        self._store, self._run = store, run

    def __call__(self, name: str) -> Path:
        """The folder of a policy, its base in the model cache.  Raises DataError or SpecError for what is none."""
        path = self._base(name) or self._stored(name)
        bring_bases({"policy": path}, self._run)
        return path

    def _stored(self, name: str) -> Path:
        if self._store is None:
            raise SpecError(f"{name}: there is no store here to look it up in; name one with --store, or talk to {EMBEDDED}")
        return policy_named(self._store, name).path

    def _base(self, name: str) -> Path | None:
        """The bare model `base`, or one by its name or folder; None if it is something else."""
        found = (
            {}
            if self._store is None
            else {record.base.name: artifact.path for artifact, record in policies(list(self._store.all())) if not record.chain}
        )
        if name in found:
            return found[name]
        if name == EMBEDDED or name.startswith((".", "/", "~")):
            out = self._run.work / f"base-{len(list(self._run.work.iterdir()))}"
            out.mkdir(parents=True)
            spec, inputs = base_request(name, None, Path.cwd())
            build_base(spec, inputs, out, self._run)
            return out
        if name == BARE:
            if len(found) == 1:
                return next(iter(found.values()))
            there = (
                f"{len(found)} bases ({', '.join(found)}); name one" if found else f"no base yet; run a plan, or name {EMBEDDED}"
            )
            raise DataError(f"{BARE}: the store has {there}")
        return None


class Talker(Protocol):
    """One policy or two, as the loop over what is typed sees them."""

    @property
    def say(self) -> Callable[[str], None]:
        """How to say a line about the program."""
        ...

    def command(self, line: str) -> bool:
        """Do what a line that starts with a slash says; False ends the conversation."""
        ...

    def exchange(self, line: str, console: Console) -> None:
        """Ask, show what is answered, remember it."""
        ...

    def answer_once(self, prompt: str, to: IO[str], *, json_output: bool) -> None:
        """Answer what came through a pipe."""
        ...


def converse(talker: Talker, console: Console) -> None:
    """Take lines from the terminal until it ends; `console` hears errors."""
    import_module("readline")  # gives `input` history and editing

    talker.say("/help says what you can do; /quit or Ctrl-D leaves")
    answers = Console(highlight=False)
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            talker.say("\n/quit leaves")
            continue
        try:
            if line.startswith("/"):
                if not talker.command(line):
                    return
            elif line:
                talker.exchange(line, answers)
        except AlignError as error:
            console.print(Text(f"{type(error).__name__}: ", style="bold red") + Text(str(error)))
        except KeyboardInterrupt:
            talker.say("\n/quit leaves")


def printed(answer: Answer, to: IO[str]) -> None:
    """Write an answer as it comes; nothing in it may steer the terminal."""
    for piece in answer:
        to.write(shown(piece))
        to.flush()
    to.write("\n")
    to.flush()


def shown(text: str) -> str:
    """`text` without control characters but newlines and tabs.

    >>> shown("red\\x1b[31m and\\nblue\\t\\x07")
    'red[31m and\\nblue\\t'
    """
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
