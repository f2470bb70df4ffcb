"""What the terminal shows: tables of stages and gates, and live lines while a flow runs."""

import getpass
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.explain import Step
from tasks.core.contract import Progress
from tasks.core.errors import AlignError, GateError, MachineError
from tasks.core.secrets import redact
from tasks.core.spec import Json
from tasks.present import duration as duration

_STATES = {"built": "green", "cached": "cyan", "missing": "yellow", "waits": "dim", "failed": "red"}
_MOST = 4
"""numbers of a running stage that a line has room for"""
_QUIET_SECONDS = 15.0
"""without a terminal, a line of progress per stage this often"""


def out() -> Console:
    """Standard output; wide enough for a table when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def complain(error: Exception) -> int:
    """One sentence on standard error; the exit code that goes with it."""
    if isinstance(error, OSError):  # disk full, no permission, connection lost
        error = MachineError(f"{error.filename or 'the machine'}: {error.strerror or error}; mend that and run again")
    style = "yellow" if isinstance(error, GateError) else "red"
    said, code = str(error), error.exit_code if isinstance(error, AlignError) else 1
    if code == AlignError.exit_code:
        said += "  This is a bug of alignflow: ALIGN_TRACEBACK=1 shows where; please report it."
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text(f"{type(error).__name__}: ", style=f"bold {style}") + Text(redact(said)))
    return code


def me() -> str:
    """Who is logged in, as far as this machine knows; what keeps names offers `--by` beside it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def steps_table(name: str, steps: Sequence[Step]) -> Table:
    """The stages of a plan: state, key, what they read, what changed."""
    counts = {state: sum(step.state == state for step in steps) for state in ("built", "missing", "waits")}
    title = f"{name}: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("stage", "state", "key", "reads", "took", "why"):
        table.add_column(column, overflow="fold", no_wrap=column in ("stage", "state", "key", "took"))
    for step in steps:
        names = [value.name for value in step.inputs.values()]
        reads = ", ".join(names if len(names) <= 5 else [*names[:4], f"and {len(names) - 4} more"])
        key = step.identity.key[:12] if step.identity else "-"
        state = Text(step.state, style=_STATES[step.state])
        table.add_row(step.name, state, key, reads, duration(step.seconds), "\n".join(step.why[:6]))
    return table


def steps_json(steps: Sequence[Step]) -> list[dict[str, Json]]:
    """The same for machines."""
    return [
        {
            "stage": step.name,
            "state": step.state,
            "key": step.identity.key if step.identity else None,
            "digest": step.artifact.digest if step.artifact else None,
            "reads": {key: value.name for key, value in step.inputs.items()},
            "why": list(step.why),
            "seconds": step.seconds,
        }
        for step in steps
    ]


class Watch:
    """Listens to a flow of this process and shows it: a line per finished stage, live lines for the running ones."""

    def __init__(self, console: Console) -> None:
        """Show on `console`."""
        self._console = console
        self._lock = threading.Lock()
        self._running: dict[str, tuple[float, Progress | None, str]] = {}
        self._told: dict[str, float] = {}
        self.report: str | None = None
        """where the run's report lies, once it is written"""

    @contextmanager
    def showing(self) -> "Generator[Watch]":
        """Keep the live lines on screen while the body runs."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(get_renderable=self._render, console=self._console, refresh_per_second=4, transient=True):
            yield self

    def __call__(self, event: object) -> None:
        """Take one event of `tasks.stage`."""
        from tasks.stage import Event

        assert isinstance(event, Event)
        with self._lock:
            now = time.monotonic()
            if event.what == "started":
                self._running[event.stage] = (now, None, "")
            elif event.what == "progress" and event.stage in self._running:
                since, _, text = self._running[event.stage]
                self._running[event.stage] = (since, event.progress, text)
                self._tell(event.stage, now)
            elif event.what == "log" and event.stage in self._running:
                since, progress, _ = self._running[event.stage]
                self._running[event.stage] = (since, progress, event.text)
            elif event.what == "report":
                self.report = event.text
            elif event.what in ("built", "cached", "failed"):
                self._running.pop(event.stage, None)
                self._console.print(self._ended(event.stage, event.what, event.seconds, event.artifact, event.text))

    def _ended(self, stage: str, what: str, seconds: float, artifact: object, error: str) -> Text:
        from tasks.core.store import Artifact
        from tasks.present import headline

        mark = {"built": "✔", "cached": "=", "failed": "✘"}[what]
        said = headline(artifact) if isinstance(artifact, Artifact) else error
        line = Text(f" {mark} {stage:<19} ", style=_STATES[what])
        return line + Text(f"{what:<7} {duration(seconds):>9}  ", style="dim") + Text(said)

    def _tell(self, stage: str, now: float) -> None:
        if self._console.is_terminal or now - self._told.get(stage, self._running[stage][0]) < _QUIET_SECONDS:
            return
        self._told[stage] = now
        self._console.print(self._line(stage, *self._running[stage]))

    def _render(self) -> Table:
        table = Table.grid()
        with self._lock:
            for stage, state in self._running.items():
                table.add_row(self._line(stage, *state))
        return table

    def _line(self, stage: str, since: float, progress: Progress | None, text: str) -> Text:
        from tasks.present import watched

        line = Text(f" ▸ {stage:<19} ", style="yellow") + Text(f"{'':<7} {duration(time.monotonic() - since):>9}  ", style="dim")
        if progress is None:
            return line + Text(text[:90], style="dim")
        values = watched(progress.values, _MOST)
        if progress.total == 0:
            return line + f"{progress.step}  {values}"
        filled = round(20 * min(1.0, progress.step / progress.total))
        return (
            line
            + Text("━" * filled, style="green")
            + Text("━" * (20 - filled), style="dim")
            + f" {progress.step}/{progress.total}  {values}"
        )
