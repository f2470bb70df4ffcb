"""A language model that judges, behind an OpenAI-compatible endpoint that the environment names: `ALIGN_JUDGE_URL` and its key.

Where the endpoint is says where, never what: only the model's name, the instruction and the scale are part of what is asked for.
`Judge.ask` is one question and one reply, retried; what a reply means is read by pure functions such as `read_score`.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tasks.core.errors import MachineError, SpecError
from tasks.core.secrets import redact
from tasks.core.spec import Json

URL = "ALIGN_JUDGE_URL"
"""environment: where the endpoint is, up to its version: `http://localhost:8000/v1`"""
KEY = "ALIGN_JUDGE_KEY"
"""environment: what it is paid or opened with, if anything"""
TRIES = 6
"""of one question, where the endpoint is busy or stumbles: after 0, 2, 4, 8 and 16 seconds, or as long as it asks"""
TIMEOUT = (10.0, 120.0)
"""seconds to connect, and to wait for a reply"""
_BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 120
"""seconds that the endpoint may ask to be left alone"""


class Judge:
    """A connection to the endpoint; several threads may ask at once."""

    def __init__(self, url: str, key: str | None = None, *, tries: int = TRIES, pause: float = 1.0) -> None:
        """`pause`: seconds that the waits between tries start from.  Raises MachineError for what is no address."""
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise MachineError(f"{URL} is no address of an endpoint; write it as http://localhost:8000/v1, the key in {KEY}")
        self._where = f"the judge at {parts.hostname}"
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._key = key
        again = Retry(
            total=tries - 1, connect=min(2, tries - 1), redirect=0, status_forcelist=_BUSY, allowed_methods=None,
            raise_on_status=False, backoff_factor=pause, respect_retry_after_header=True, retry_after_max=_LONGEST_WAIT,
        )  # fmt: skip
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=32))

    @classmethod
    def from_environment(cls) -> "Judge":
        """The endpoint that the environment names.  Raises MachineError where it names none."""
        if not (url := os.environ.get(URL)):
            raise MachineError(
                f"a judge is asked for and {URL} is not set; name an endpoint, for example http://localhost:8000/v1"
            )
        return cls(url, os.environ.get(KEY) or None)

    def ask(self, model: str, system: str, user: str, *, temperature: float | None = 0.0) -> str:
        """What `model` replies to `user` under the instruction `system`.  `temperature` None: as the endpoint likes.

        Raises MachineError where it cannot be reached, stays busy or replies in another form, SpecError where it refuses the
        question.
        """
        import requests

        asked: dict[str, Json] = {
            "model": model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
            **({} if temperature is None else {"temperature": temperature}),
        }
        try:
            reply = self._session.post(self._url, json=asked, timeout=TIMEOUT, auth=self._sign, allow_redirects=False)
        except requests.RequestException as error:
            raise MachineError(f"{self._where} cannot be reached ({_reason(error)}); is it running, and {URL} right?") from None
        if reply.status_code in (401, 403):
            raise MachineError(f"{self._where} does not let us in (HTTP {reply.status_code}); is {KEY} right?")
        if reply.status_code in _BUSY:
            raise MachineError(f"{self._where} is busy or broken (HTTP {reply.status_code}: {_said(reply)}); try again later")
        if reply.status_code != 200:
            raise SpecError(
                f"{self._where} refuses the question (HTTP {reply.status_code}: {_said(reply)}); is model {model} there?"
            )
        return self._content(reply)

    def _sign(self, request: Any) -> Any:  # noqa: ANN401  of requests
        """Put the key in, here alone: nothing that is logged or shown holds the request."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _content(self, reply: Any) -> str:  # noqa: ANN401  of requests
        try:
            content = reply.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            content = None
        if not isinstance(content, str):
            raise MachineError(f"{self._where} does not reply as an OpenAI-compatible endpoint does: {_said(reply)}")
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


def _reason(error: Exception) -> str:
    """Why a connection failed, without the address, which may hold more than its name."""
    text = str(error)
    known: Mapping[str, str] = {
        "Connection refused": "connection refused",
        "Name or service not known": "no such host",
        "NameResolutionError": "no such host",
        "timed out": "timed out",
        "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted",
    }
    return next((said for seen, said in known.items() if seen in text), type(error).__name__)


def _said(reply: Any) -> str:  # noqa: ANN401  of requests
    """The beginning of what the endpoint said, without secrets."""
    return redact(" ".join(reply.text.split()))[:200] or "nothing"
