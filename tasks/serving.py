"""A child that answers, seen from here: load policies by name, ask them, hear the answer token by token.  Imports no torch.

One base in memory, any number of adapters, one picked per request.  The child hears us on its standard input and answers on its
standard output: no port is opened.  It ends with this process, or with `close`.
"""

import json
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from tasks.core.contract import Execution, Run
from tasks.core.errors import ERRORS, AlignError, MachineError
from tasks.core.launch import environment, tied

_TAIL = 5
_GRACE_SECONDS = 5.0


class Request(BaseModel):
    """What a policy is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    adapter: str | None = None
    """name of a loaded policy; null: the bare model below the first one that is not a whole model"""
    messages: list[dict[str, str]] = Field(min_length=1)
    """role and content each, the last one the user's"""
    max_new_tokens: PositiveInt = 256
    """the answer is cut here, stop token included"""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token each time"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """draw from the likeliest tokens that together have this probability"""
    seed: NonNegativeInt = 0
    """of the draws: the same request has the same answer, whatever is asked beside it"""


class Done(BaseModel):
    """How an answer ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    text: str
    tokens: int
    prompt_tokens: int
    finished: bool
    """by itself, before the limit"""
    cancelled: bool
    seconds: float


class Loaded(BaseModel):
    """A policy that is ready."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shares: bool
    """its weights were in memory already"""
    whole: bool = False
    """it is a whole model, with no bare one below it"""
    seconds: float
    chain: list[str]
    """stage and method of each training"""


class Answer:
    """An answer under way: iterate over pieces of text, then look at `done`."""

    def __init__(self, engine: "Engine", number: int) -> None:
        """`number`: of the request."""
        self._engine, self._number = engine, number
        self.events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.done: Done | None = None
        """after the last piece"""

    def __iter__(self) -> Iterator[str]:
        """Pieces of text as they come.  Raises what the child raised."""
        while self.done is None:
            line = self.events.get()
            if "token" in line:
                yield line["text"]
            else:
                self.done = Done(**_result(line, "done"))

    def cancel(self) -> None:
        """Let it end at the next token."""
        self._engine.send({"cancel": self._number})

    def wait(self) -> Done:
        """The whole answer."""
        for _ in self:
            pass
        assert self.done is not None
        return self.done


class Engine:
    """A child that holds models."""

    def __init__(
        self, models: Path, execution: Execution | None = None, *, log: Callable[[str], None] = lambda text: None
    ) -> None:
        """Start it; it loads its libraries while the caller goes on.  `models`: the model cache."""
        self._work = tempfile.TemporaryDirectory(prefix="align-serve-")
        run = Run(Path(self._work.name), models.absolute(), execution or Execution())
        self._answers: dict[int, Answer] = {}
        self._loads: dict[str, SimpleQueue[dict[str, Any]]] = {}
        self._writing, self._lock = threading.Lock(), threading.Lock()
        self._number = 0
        self._log, self._tail = log, deque[str](maxlen=_TAIL)
        self._gone: MachineError | None = None
        self._child = subprocess.Popen(
            tied([sys.executable, "-m", "tasks.training.serve"]),
            cwd=run.work, env=environment(run), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._hear, self._overhear)]
        for thread in self._threads:
            thread.start()
        execution_fields = run.execution.model_dump(mode="json")
        self.send({"open": {"work": str(run.work), "models": str(run.models), "execution": execution_fields}})

    def __enter__(self) -> "Engine":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the child."""
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    def load(self, name: str, policy: Path) -> Loaded:
        """Wait until the policy in folder `policy` is ready under `name`; its base must lie in the model cache."""
        heard: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._loads[name] = heard
        self.send({"load": name, "policy": str(policy.absolute())})
        return Loaded(**_result(heard.get(), "loaded"))

    def ask(self, request: Request) -> Answer:
        """Ask a policy; requests that wait for one policy are answered together."""
        with self._lock:
            self._number += 1
            answer = self._answers[self._number] = Answer(self, self._number)
            number = self._number
        self.send({"ask": number, **request.model_dump()})
        return answer

    def send(self, line: dict[str, Any]) -> None:
        """Tell the child.  Raises MachineError if it is gone."""
        if self._gone:
            raise self._gone
        assert self._child.stdin is not None
        try:
            with self._writing:
                self._child.stdin.write(json.dumps(line) + "\n")
                self._child.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            self._threads[1].join(_GRACE_SECONDS)
            raise self._dead() from error

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.close()
            self._child.wait(0.5)  # it may be in the middle of an answer, which nobody waits for
        except (OSError, subprocess.TimeoutExpired):
            self._child.kill()
        self._child.wait()
        for thread in self._threads:
            thread.join(_GRACE_SECONDS)
        for pipe in (self._child.stdout, self._child.stderr):
            pipe.close() if pipe else None
        self._work.cleanup()

    def _hear(self) -> None:
        assert self._child.stdout is not None
        for text in self._child.stdout:
            line: dict[str, Any] = json.loads(text)
            name = next(iter(line.values()))
            if isinstance(name, int):
                self._answers[name].events.put(line)
                if "token" not in line:
                    del self._answers[name]
            else:
                self._loads.pop(name).put(line)
        self._threads[1].join(_GRACE_SECONDS)
        self._gone = self._dead()
        for heard in (*self._loads.values(), *(answer.events for answer in self._answers.values())):
            heard.put({"failed": "", "type": "MachineError", "message": str(self._gone)})

    def _overhear(self) -> None:
        assert self._child.stderr is not None
        for text in self._child.stderr:
            if said := text.strip():
                self._tail.append(said)
                self._log(said)

    def _dead(self) -> MachineError:
        code = self._child.wait()
        return MachineError(f"the model's process ended (exit {code}); its last words: {' / '.join(self._tail) or 'none'}")


def _result(line: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The fields of an event.  Raises the error it reports."""
    if "failed" in line:
        raise ERRORS.get(line["type"], AlignError)(line["message"])
    return {key: value for key, value in line.items() if key != wanted}
