"""An OpenAI-compatible endpoint that the environment names, and the manners of asking it: patience, plain errors, no secrets.

Where an endpoint is says where, never what: it is part of no spec, and its key is in no log, error or artifact.
"""

import json
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tasks.core.errors import MachineError
from tasks.core.secrets import redact
from tasks.core.spec import Json

TRIES = 6
"""of one question, where the endpoint is busy or stumbles: after 0, 2, 4, 8 and 16 seconds, or as long as it asks"""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""replies after which the same question is asked again"""
_CONNECT = 10.0
"""seconds to connect"""
_LONGEST_WAIT = 120
"""seconds that the endpoint may ask to be left alone"""


class Role(NamedTuple):
    """What an endpoint is for, and the variables of the environment that say where it is."""

    name: str
    """`judge`, say"""
    url: str
    """where it is, up to its version: `http://localhost:8000/v1`"""
    key: str
    """what it is paid or opened with, if anything"""


class Reply(NamedTuple):
    """What came back: any status but those that ask for patience or another key."""

    status: int
    text: str

    @property
    def said(self) -> str:
        """The beginning of the text, without secrets."""
        return redact(" ".join(self.text.split()))[:200] or "nothing"

    def json(self) -> Any:  # noqa: ANN401  whatever it is
        """The text as JSON; None where it is none."""
        try:
            return json.loads(self.text)
        except ValueError:
            return None


class Endpoint:
    """A connection; several threads may ask at once."""

    def __init__(
        self,
        role: Role,
        url: str,
        key: str | None = None,
        *,
        tries: int = TRIES,
        pause: float = 1.0,
        patience: float = 120.0,
        busy: Collection[int] = BUSY,
        threads: int = 32,
        slow: bool = True,
    ) -> None:
        """pause: seconds that the waits between tries start from.  patience: seconds to wait for a reply.

        slow: whether one that does not reply in time is asked again.  Raises MachineError for what is no address.
        """
        import requests
        from requests.adapters import HTTPAdapter

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise MachineError(
                f"{role.url} is no address of an endpoint; write it as http://localhost:8000/v1, the key in {role.key}"
            )
        self.where = f"the {role.name} at {parts.hostname}"
        self._role, self._url, self._key, self._busy, self._patience = role, url.rstrip("/"), key, busy, patience
        again = _again(tries, pause, busy, slow=slow)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=threads))

    def post(self, path: str, asked: Mapping[str, Json]) -> Reply:
        """The reply to `asked` at `path`, below the version.

        Raises MachineError where it cannot be reached, stays busy or does not let us in.
        """
        import requests

        address, wait = f"{self._url}/{path}", (_CONNECT, self._patience)
        try:
            reply = self._session.post(address, json=asked, timeout=wait, auth=self._sign, allow_redirects=False)
        except requests.ReadTimeout:
            raise MachineError(
                f"{self.where} took the question and did not reply in {self._patience:g} s; does it hang? see its log"
            ) from None
        except requests.RequestException as error:
            raise MachineError(
                f"{self.where} cannot be reached ({_reason(error)}); is it running, and {self._role.url} right?"
            ) from None
        found = Reply(reply.status_code, reply.content.decode("utf-8", "replace"))  # JSON is, whatever the header says or omits
        if found.status in (401, 403):
            raise MachineError(f"{self.where} does not let us in (HTTP {found.status}); is {self._role.key} right?")
        if found.status in self._busy:
            raise MachineError(f"{self.where} is busy or broken (HTTP {found.status}: {found.said}); try again later")
        return found

    def _sign(self, request: Any) -> Any:  # noqa: ANN401  of requests
        """Put the key in, here alone: nothing that is logged or shown holds the request."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _again(tries: int, pause: float, busy: Collection[int], *, slow: bool) -> Any:  # noqa: ANN401  of urllib3
    """When a question is asked again.  `slow`: also after silence; a broken connection, which may only have been idle, always."""
    from urllib3.exceptions import ReadTimeoutError
    from urllib3.util import Retry

    class Again(Retry):
        def increment(self, *args: Any, error: Exception | None = None, **more: Any) -> Retry:  # noqa: ANN401
            if isinstance(error, ReadTimeoutError) and not slow:
                raise error
            return super().increment(*args, error=error, **more)

    return Again(
        total=tries - 1, connect=min(2, tries - 1), redirect=0, status_forcelist=busy, allowed_methods=None,
        raise_on_status=False, backoff_factor=pause, respect_retry_after_header=True, retry_after_max=_LONGEST_WAIT,
    )  # fmt: skip


def named(role: Role) -> tuple[str, str | None]:
    """Address and key of the endpoint that the environment names.  Raises MachineError where it names none."""
    if not (url := os.environ.get(role.url)):
        raise MachineError(
            f"a {role.name} is asked for and {role.url} is not set; name an endpoint, for example http://localhost:8000/v1"
        )
    return url, os.environ.get(role.key) or None


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
