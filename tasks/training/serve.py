# pyright: basic
"""The child that answers: lines of JSON in, lines of JSON out, one base in memory and a policy picked per request.

In:   {"open": {"models", "execution"}}, then {"load": name, "policy": folder}, {"ask": number, ...`Request`}, {"cancel": number}.
Out:  {"loaded": name, ...}, {"token": number, "text"}, {"done": number, ...}, {"failed": name or number, "type", "message"}.

Waiting requests of one policy are answered in one batch; a request that comes later waits for it.  Two policies speak in turns, a
token each.  The end of the input ends the child.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import numpy as np
import torch

from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError
from tasks.core.secrets import redact
from tasks.policy import MODEL
from tasks.serving import Request
from tasks.training.__main__ import classified, quiet
from tasks.training.batches import soft_tokens
from tasks.training.generate import ROWS, TOKENS, drawn, speak, uniform
from tasks.training.shelf import Held, Shelf

Line = dict[str, Any]
_AT_ONCE = 2
"""policies that speak in turns: each holds the keys and values of its own batch"""


class Server:
    """Reads requests in a thread, answers them in the main one."""

    def __init__(self, run: Run, source: TextIO, sink: TextIO) -> None:
        """Answer what comes from `source` on `sink`."""
        self._shelf = Shelf(run)
        self._source, self._sink = source, sink
        self._inbox: SimpleQueue[Line | None] = SimpleQueue()
        self._waiting: list[tuple[int, Request]] = []
        self._cancelled: set[int] = set()
        self._speaking: dict[str | None, Iterator[None]] = {}
        """policy -> its batch under way"""

    def serve(self) -> None:
        """Until the input ends."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            idle = not self._waiting and not self._speaking
            line = self._inbox.get() if idle or not self._inbox.empty() else {}
            if line is None:
                return
            if line:
                self._take(line)
            if self._inbox.empty():
                self._start()
                for name, batch in list(self._speaking.items()):
                    if next(batch, self) is self:
                        del self._speaking[name]

    def _read(self) -> None:
        for text in self._source:
            line = json.loads(text)
            if "cancel" in line:
                self._cancelled.add(line["cancel"])  # at once: its answer may be under way
            else:
                self._inbox.put(line)
        self._inbox.put(None)

    def _take(self, line: Line) -> None:
        name: Any = line.get("load", line.get("ask"))
        try:
            if "load" in line:
                held = self._shelf.add(name, Path(line["policy"]))
                about = {"shares": held.shares, "whole": held.loaded.source.name == MODEL, "chain": _chain(held)}
                self._say(loaded=name, seconds=round(held.seconds, 3), **about)
            else:
                request = Request.model_validate({key: value for key, value in line.items() if key != "ask"})
                self._held(request.adapter)
                self._waiting.append((name, request))
        except Exception as error:  # noqa: BLE001  whoever asked hears it; the others go on
            self._fail(name, error)

    def _held(self, name: str | None) -> Held:
        if name is None:
            return self._shelf.plain()
        if name not in self._shelf.held:
            raise DataError(f"{name}: no such adapter is loaded; there are {', '.join(self._shelf.held) or 'none'}")
        return self._shelf.held[name]

    def _start(self) -> None:
        """Begin batches of the policies whose requests wait longest, as far as there are places."""
        for name in dict.fromkeys(request.adapter for _, request in self._waiting):
            if name not in self._speaking and len(self._speaking) < _AT_ONCE:
                self._speaking[name] = self._answer(*self._rows(name))

    def _rows(self, name: str | None) -> "tuple[Held, list[_Row]]":
        """The request for the policy `name` that waits longest, and those that fit beside it."""
        held = self._held(name)
        kind, rows, left = held.loaded.device.type, list[_Row](), list[tuple[int, Request]]()
        for number, request in self._waiting:
            if request.adapter != name or len(rows) == ROWS[kind]:
                left.append((number, request))
                continue
            try:
                row = _Row(number, request, held)
            except Exception as error:  # noqa: BLE001  one that cannot be answered does not take the others down
                self._fail(number, error)
                continue
            if rows and max(other.room for other in (row, *rows)) * (len(rows) + 1) > TOKENS[kind]:
                left.append((number, request))
            else:
                rows.append(row)
        self._waiting = left
        return held, rows

    def _answer(self, held: Held, rows: "Sequence[_Row]") -> Iterator[None]:
        """Answer `rows`, a token of each at every step."""
        try:
            yield from self._speak(held, rows)
        except Exception as error:  # noqa: BLE001
            for row in rows:
                if not row.done:
                    self._fail(row.number, error)

    def _speak(self, held: Held, rows: Sequence["_Row"]) -> Iterator[None]:
        if not rows:
            return
        silent: set[int] = set()

        def pick(logits_BV: torch.Tensor, alive: list[int], step: int) -> torch.Tensor:
            return torch.cat([rows[i].next(logits_BV[b : b + 1], step) for b, i in enumerate(alive)])

        longest = max(row.request.max_new_tokens for row in rows)
        for said in speak(held.loaded.model, [row.prompt for row in rows], held.encoder, longest, pick, silent):
            for i, token in said:
                row = rows[i]
                if text := row.take(token):
                    self._say(token=row.number, text=text)
                if row.number in self._cancelled or len(row.ids) == row.request.max_new_tokens:
                    silent.add(i)
                if i in silent or row.finished:
                    self._say(done=row.number, **row.end(cancelled=row.number in self._cancelled))
                    self._cancelled.discard(row.number)
            yield

    def _fail(self, name: str | int, error: Exception) -> None:
        known = classified(error)
        sys.stderr.write(traceback.format_exc() if known.exit_code == 1 else "")
        self._say(failed=name, type=type(known).__name__, message=redact(str(known)))

    def _say(self, **line: Any) -> None:  # noqa: ANN401
        self._sink.write(json.dumps(line) + "\n")
        self._sink.flush()


class _Row:
    """A request under way."""

    def __init__(self, number: int, request: Request, held: Held) -> None:
        self.number, self.request = number, request
        self.ids: list[int] = []
        self.finished = self.done = False
        self._held, self._started = held, time.monotonic()
        self._shown = 0
        """tokens whose text was sent"""
        self.prompt = held.encoder.prompt(request.messages)
        room = getattr(held.loaded.model.config, "max_position_embeddings", None)
        self.room = soft_tokens(held.loaded.model) + len(self.prompt) + request.max_new_tokens
        """positions it may take"""
        if room and self.room > room:
            raise DataError(
                f"the conversation has {len(self.prompt)} tokens, and {request.max_new_tokens} new ones exceed the model's "
                f"{room} positions; start afresh, or ask for fewer new tokens"
            )
        self._draws = uniform(request.seed, "answer", request.max_new_tokens) if request.temperature else None

    def next(self, logits_V: torch.Tensor, step: int) -> torch.Tensor:
        """The next token, from logits of shape (1, V)."""
        if self._draws is None:
            return logits_V.argmax(dim=-1)
        draw: Any = np.asarray([self._draws[step]])
        return drawn(logits_V, draw, temperature=self.request.temperature, top_p=self.request.top_p)

    def take(self, token: int) -> str:
        """Note the token; return the text that is certain by now and was not sent: a character may take several tokens."""
        self.finished = token in self._held.encoder.stops
        self.ids.append(token)
        words = self.ids[:-1] if self.finished else self.ids
        text = self._text(words[self._context :])
        sent = self._text(words[self._context : self._shown])
        if (text.endswith("\ufffd") and not self.finished and len(self.ids) < self.request.max_new_tokens) or text == sent:
            return ""
        self._context, self._shown = self._shown, len(words)
        return text[len(sent) :]

    _context = 0
    """tokens before `_shown` that are spelled again: a tokenizer may write a word's first token without its space"""

    def end(self, *, cancelled: bool) -> Line:
        """How it went."""
        self.done = True
        words = self.ids[:-1] if self.finished else self.ids
        return {
            "text": self._text(words),
            "tokens": len(words),
            "prompt_tokens": len(self.prompt),
            "finished": self.finished,
            "cancelled": cancelled,
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def _text(self, ids: list[int]) -> str:
        return str(self._held.loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _chain(held: Held) -> list[str]:
    return [f"{link.stage} {link.method}" for link in held.loaded.record.chain]


def main() -> None:
    """Serve standard input."""
    quiet()
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is log
    opened = json.loads(sys.stdin.readline())["open"]
    run = Run(Path(opened["work"]), Path(opened["models"]), Execution(**opened["execution"]), log=_log)
    Server(run, sys.stdin, sink).serve()
    sink.flush()
    os._exit(0)


def _log(text: str) -> None:
    sys.stderr.write(text.rstrip("\n") + "\n")


if __name__ == "__main__":
    main()
