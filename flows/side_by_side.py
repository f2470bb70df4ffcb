"""Two policies in one chat: each prompt goes to both, their answers appear beside each other, each keeps its own conversation.

In a narrow terminal the answers come below each other, and from a pipe they come labelled or as JSON.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import IO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.chat import Chat, printed, shown
from flows.console import duration

WIDE = 100
"""columns of a terminal from which two answers fit beside each other"""
SIDES = ("left", "right")
HELP = """/keep left       let both go on from the left conversation; also: right, or the name
/left NAME       another policy on that side: its key, release or name, or `base`; also: /right
/system TEXT     give both their instructions; without TEXT, none
/reset           forget both conversations
/quit            leave (also: end of input)
Ctrl-C           stop both answers"""


@dataclass
class Pair:
    """Two conversations that hear the same prompts."""

    left: Chat
    right: Chat

    @property
    def sides(self) -> tuple[Chat, Chat]:
        """Both, left first."""
        return self.left, self.right

    @property
    def say(self) -> Callable[[str], None]:
        """How to say a line about the program."""
        return self.left.say

    def command(self, line: str) -> bool:
        """Do what a line that starts with a slash says; False ends the conversation."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word in ("/quit", "/exit"):
            return False
        if word in ("/reset", "/system"):
            self.left.command(line)
            self.right.turns.clear() if word == "/reset" else setattr(self.right, "system", rest)
        elif word == "/keep":
            self._keep(rest)
        elif word in ("/left", "/right") and rest:
            side = self.sides[SIDES.index(word[1:])]
            side.switch(rest)
            self.say(f"{rest} answers on the {word[1:]} now")
        else:
            self.say(HELP if word == "/help" else f"{word}: no such command\n{HELP}")
        return True

    def _keep(self, which: str) -> None:
        found = [i for i, side in enumerate(self.sides) if which in (SIDES[i], SIDES[i][0], side.title)]
        if not which or len(found) != 1:
            self.say("/keep left or /keep right: which answer shall both go on from?")
        elif not self.sides[found[0]].turns:
            self.say("nothing is said yet, so there is nothing to go on from")
        else:
            kept, other = self.sides[found[0]], self.sides[1 - found[0]]
            other.turns = [dict(turn) for turn in kept.turns]
            self.say(f"both go on from what {kept.title} said")

    def exchange(self, line: str, console: Console) -> None:
        """Ask both, show the answers as they come, and remember them."""
        both = _Both(self, line)
        wide = console.width >= WIDE
        try:
            (both.beside if wide else both.below)(console)
        except KeyboardInterrupt:
            both.stop()
            if wide:
                console.print(both.table())
            self.say("stopped")
        for side, answer in zip(self.sides, both.answers, strict=True):
            assert answer.done is not None
            side.keep(line, answer.done.text)

    def answer_once(self, prompt: str, to: IO[str], *, json_output: bool) -> None:
        """Answer what came through a pipe: labelled texts, or JSON."""
        asked = [(name, side.title, side.ask(prompt)) for name, side in zip(SIDES, self.sides, strict=True)]
        if json_output:
            answers = [{"side": name, "policy": title, **answer.wait().model_dump()} for name, title, answer in asked]
            to.write(json.dumps({"prompt": prompt, "answers": answers}, indent=2, ensure_ascii=False) + "\n")
            return
        for name, title, answer in asked:
            to.write(f"[{name}: {title}]\n")
            printed(answer, to)


class _Both:
    """Two answers under way."""

    def __init__(self, pair: Pair, line: str) -> None:
        self.pair = pair
        self.answers = [side.ask(line) for side in pair.sides]
        self._texts = ["", ""]
        self._listening: list[Thread] = []
        self._failed: list[Exception] = []

    def stop(self) -> None:
        """End both; what they said by then counts."""
        for answer in self.answers:
            if answer.done is None:
                answer.cancel()
        for thread in self._listening:  # they hear the end, and nobody else may
            thread.join()
        if self._failed:
            raise self._failed[0]
        for number, answer in enumerate(self.answers):
            self._texts[number] = answer.wait().text

    def beside(self, console: Console) -> None:
        """In two columns that grow; a screen shows the last lines of them until both are whole."""
        with Live(self.table(), console=console, transient=True, refresh_per_second=12, vertical_overflow="crop") as live:
            for _ in self._pieces():
                live.update(self._last(console))
        console.print(self.table())

    def below(self, console: Console) -> None:
        """One after the other."""
        for number, (side, answer) in enumerate(zip(self.pair.sides, self.answers, strict=True)):
            console.print(Text.assemble((f"{SIDES[number]}  ", "dim"), (side.title, "bold")))
            printed(answer, console.file)
            console.print(self._end(number))

    def table(self, texts: Sequence[Text] | None = None) -> Table:
        """Both answers, or `texts` in their place."""
        table = Table(box=box.SIMPLE_HEAD, expand=True, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, side in zip(SIDES, self.pair.sides, strict=True):
            table.add_column(Text.assemble((f"{name}  ", "dim"), (side.title, "bold")), ratio=1, overflow="fold")
        texts = texts or [Text(shown(text).strip("\n")) for text in self._texts]
        table.add_row(*(Group(text, self._end(number)) for number, text in enumerate(texts)))
        return table

    def _last(self, console: Console) -> Table:
        """The table with as many of the last lines as the screen has room for."""
        width, most = (console.width - 2) // 2, max(1, console.height - 5)
        lines = [Text(shown(text).strip("\n")).wrap(console, width) for text in self._texts]
        return self.table([Text("\n").join(one[-most:]) for one in lines])

    def _end(self, number: int) -> Text:
        """How an answer ended."""
        done = self.answers[number].done
        if done is None:
            return Text("...", style="dim")
        how = "stopped" if done.cancelled else "" if done.finished else "cut here: --max-new-tokens allows more"
        return Text(", ".join(filter(None, [f"{done.tokens} tokens", duration(done.seconds), how])), style="dim")

    def _pieces(self) -> Iterator[None]:
        """Yield whenever either said more.  Raises what an answer raises, and then stops listening to the other."""
        heard: SimpleQueue[tuple[int, str | Exception | None]] = SimpleQueue()

        def listen(number: int) -> None:
            try:
                for piece in self.answers[number]:
                    heard.put((number, piece))
                heard.put((number, None))
            except Exception as error:  # noqa: BLE001  raised where it is shown
                self._failed.append(error)
                heard.put((number, error))

        self._listening = [Thread(target=listen, args=(number,), daemon=True) for number in range(len(self.answers))]
        for thread in self._listening:
            thread.start()
        ended = 0
        while ended < len(self.answers):
            number, piece = heard.get()
            if isinstance(piece, Exception):
                self.answers[1 - number].cancel()
                raise piece
            ended += piece is None
            self._texts[number] += piece or ""
            yield
