"""A running vLLM server, asked over HTTP: take up an adapter, drop it, write an answer.  No vLLM and no torch here.

Written to vLLM's sources, in our words: `vllm/entrypoints/openai/completion/protocol.py` at 002032ee2 and
`vllm/entrypoints/openai/models/serving.py` at 00153c8b7.  Every field of sampling is said: what is left out, the server takes
from the model's generation_config.json.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, cast

from tasks.core.endpoint import TRIES, Endpoint, Reply, Role, named
from tasks.core.errors import MachineError
from tasks.core.spec import Json

ROLE = Role("vLLM server", "ALIGN_VLLM_URL", "ALIGN_VLLM_KEY")
"""what the environment calls it"""
THREADS = 64
"""questions at once; the server batches them itself"""
LEAST = "0.10.2"
"""first version of vLLM that can return the tokens of an answer (`return_token_ids`, its pull request 22587)"""
_SWITCH = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
"""in the server's environment; without it the routes for adapters are missing"""
_PATIENCE = 600.0
"""seconds to wait for an answer, which may queue behind many others; once: who is silent that long hangs"""
_PARTING = 30.0
"""seconds to wait until an adapter is dropped, once"""
_BUSY = (408, 425, 429, 502, 503, 504)
"""of the usual ones without 409 and 500, by which vLLM says that an adapter does not load"""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float
    new_tokens: int
    """the most of one answer, the stop token included"""
    silent: int
    """so many tokens come before a stop token may"""
    stops: Collection[int]

    def asked(self) -> dict[str, Json]:
        """The same as vLLM's fields.  `ignore_eos`: exactly `stops` end an answer."""
        stops: list[Json] = [*sorted(self.stops)]
        return {
            "temperature": self.temperature, "max_tokens": self.new_tokens, "min_tokens": self.silent,
            "stop_token_ids": stops, "ignore_eos": True, "return_token_ids": True, "skip_special_tokens": False,
            "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "n": 1,
        }  # fmt: skip


class Written(NamedTuple):
    """An answer."""

    tokens: list[int]
    """the stop token included"""
    logps: list[float]
    """of each token, before temperature and penalties; empty where they were not asked for"""


class VllmServer:
    """A connection; several threads may ask at once.  Whatever it raises is a MachineError: what to ask was checked before."""

    def __init__(self, url: str, key: str | None = None, *, start: str = "", tries: int = TRIES, pause: float = 1.0) -> None:
        """start: the command that starts a server which can do what is asked, for errors."""
        self._endpoint = Endpoint(
            ROLE, url, key, tries=tries, pause=pause, patience=_PATIENCE, busy=_BUSY, threads=THREADS, slow=False
        )  # fmt: skip
        self._parting = Endpoint(ROLE, url, key, tries=1, patience=_PARTING, busy=_BUSY, threads=1, slow=False)
        self._start = f"`{_SWITCH} {start or 'vllm serve BASE --enable-lora'}`"

    @classmethod
    def from_environment(cls, start: str = "") -> "VllmServer":
        """The server that the environment names.  Raises MachineError where it names none."""
        return cls(*named(ROLE), start=start)

    def load(self, name: str, folder: Path) -> None:
        """Take up the adapter in `folder`, whose path the server must see too; one that is there by this name stays."""
        reply = self._endpoint.post("load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if reply.status == 200 or (reply.status == 400 and "already been loaded" in reply.text):
            return
        if reply.status == 404 and _detail(reply) == "Not Found":
            raise self.broken("has no route for adapters")
        raise self.broken(f"does not take up the adapter in {folder} (HTTP {reply.status}: {reply.said})")

    def unload(self, name: str) -> str | None:
        """Drop the adapter; why it would not, if so: what is left behind costs the server memory, and nobody a result."""
        try:
            reply = self._parting.post("unload_lora_adapter", {"lora_name": name})
        except MachineError as error:
            return str(error)
        return None if reply.status in (200, 404) else f"HTTP {reply.status}: {reply.said}"

    def write(self, name: str, prompt: Sequence[int], sampling: Sampling, *, seed: int, logps: bool = False) -> Written:
        """An answer of adapter `name` to the tokens of `prompt`, drawn by `seed`."""
        more: dict[str, Json] = {"logprobs": 1} if logps else {}
        asked: dict[str, Json] = {"model": name, "prompt": [*prompt], "seed": seed, **sampling.asked(), **more}
        reply = self._endpoint.post("completions", asked)
        if reply.status != 200:
            raise self.broken(f"refuses to answer (HTTP {reply.status}: {reply.said})")
        found = reply.json()
        try:
            choice: dict[str, Any] = found["choices"][0]
            tokens: Any = choice.get("token_ids")
            told: dict[str, Any] = choice.get("logprobs") or {}
            values: Any = told.get("token_logprobs") if logps else []
        except (LookupError, TypeError, AttributeError):
            raise self._odd(f"does not reply as vLLM does: {reply.said}") from None
        if tokens is None:
            raise self._odd("does not return the tokens of its answers")
        if why := _malformed(tokens, sampling):
            raise self._odd(f"sent {why}")
        if logps and not (_list_of(int | float, values) and len(values) == len(tokens)):
            raise self._odd("sent an answer without a log-probability of each token")
        return Written(tokens, values)

    def _odd(self, what: str) -> MachineError:
        return MachineError(f"{self._endpoint.where} {what}; it must be vLLM {LEAST} or later")

    def broken(self, what: str) -> MachineError:
        """The error that this server does `what`, with the remedy."""
        return MachineError(f"{self._endpoint.where} {what}; start it by {self._start}")


def _malformed(sent: Any, sampling: Sampling) -> str | None:  # noqa: ANN401  whatever came
    """What is wrong with an answer; None: nothing."""
    if not _list_of(int, sent) or not sent:
        return "an answer that is no list of tokens"
    tokens = cast(list[int], sent)
    if len(tokens) > sampling.new_tokens:
        return f"an answer of {len(tokens)} tokens where {sampling.new_tokens} were the limit"
    ends = [place for place, token in enumerate(tokens) if token in sampling.stops]
    if ends and ends[0] < sampling.silent:
        return f"an answer that stops after {ends[0]} tokens where {sampling.silent} were due"
    if ends and ends[0] < len(tokens) - 1:
        return "an answer that goes on after a stop token"
    if not ends and len(tokens) < sampling.new_tokens:
        return f"an answer of {len(tokens)} tokens that ends neither in a stop token nor at the limit of {sampling.new_tokens}"
    return None


def _list_of(kind: type | UnionType, sent: object) -> bool:
    return isinstance(sent, list) and all(isinstance(one, kind) for one in cast(list[object], sent))


def _detail(reply: Reply) -> object:
    found = reply.json()
    return found.get("detail") if isinstance(found, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
