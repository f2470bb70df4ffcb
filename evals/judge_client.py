"""A language model that judges, behind an OpenAI-compatible endpoint that the environment names: `ALIGN_JUDGE_URL` and its key.

Where the endpoint is says where, never what: only the model's name, the instruction and the scale are part of what is asked for.
`Judge.ask` is one question and one reply, retried; what a reply means is read by pure functions such as `read_score`.
"""

import re

from tasks.core.endpoint import TRIES, Endpoint, Reply, Role, named
from tasks.core.errors import MachineError, SpecError
from tasks.core.spec import Json

ROLE = Role("judge", "ALIGN_JUDGE_URL", "ALIGN_JUDGE_KEY")
"""what the environment calls it"""


class Judge:
    """A connection to the endpoint; several threads may ask at once."""

    def __init__(self, url: str, key: str | None = None, *, tries: int = TRIES, pause: float = 1.0) -> None:
        """`pause`: seconds that the waits between tries start from.  Raises MachineError for what is no address."""
        self._endpoint = Endpoint(ROLE, url, key, tries=tries, pause=pause)

    @classmethod
    def from_environment(cls) -> "Judge":
        """The endpoint that the environment names.  Raises MachineError where it names none."""
        return cls(*named(ROLE))

    def ask(self, model: str, system: str, user: str, *, temperature: float | None = 0.0) -> str:
        """What `model` replies to `user` under the instruction `system`.  `temperature` None: as the endpoint likes.

        Raises MachineError where it cannot be reached, stays busy or replies in another form, SpecError where it refuses the
        question.
        """
        asked: dict[str, Json] = {
            "model": model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            **({} if temperature is None else {"temperature": temperature}),
        }
        reply = self._endpoint.post("chat/completions", asked)
        if reply.status != 200:
            raise SpecError(
                f"{self._endpoint.where} refuses the question (HTTP {reply.status}: {reply.said}); is model {model} there?"
            )
        return self._content(reply)

    def _content(self, reply: Reply) -> str:
        try:
            content = reply.json()["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            content = None
        if not isinstance(content, str):
            raise MachineError(f"{self._endpoint.where} does not reply as an OpenAI-compatible endpoint does: {reply.said}")
        return content


_SCORE = re.compile(r"\bscore\b\W{0,6}?(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?", re.IGNORECASE)
_ALONE = re.compile(r"\W{0,4}?(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?\W{0,4}")


def read_score(reply: str, scale: int) -> float | None:
    """The score that a reply ends with, from 1 to `scale`; None where it gives none.

    >>> [read_score(reply, 10) for reply in ("So:\\n**Score: 7/10**", " 8. ", "Score: 3, no, score: 4", "Score: 11", "7 of 9")]
    [7.0, 8.0, 4.0, None, None]
    """
    stated = _SCORE.findall(reply)
    alone = _ALONE.fullmatch(reply.strip())
    found = stated[-1] if stated else alone[1] if alone else None
    score = float(found) if found is not None else None
    return score if score is not None and 1 <= score <= scale else None
