"""Secrets stay in the environment: never in logs, manifests or artifacts."""

import os
import re

from tasks.core.errors import SpecError

_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|(API|ACCESS|PRIVATE|JUDGE|VLLM)_?KEY|AUTH_STRING|(CONNECTION|DATABASE)_URL|ALIGN_DATABASE",
    re.IGNORECASE,
)
_SHORTEST = 8
"""a shorter value would blank out ordinary words"""


def redact(text: str) -> str:
    """`text` with the value of every secret-looking environment variable replaced by its name."""
    for name, value in _secrets().items():
        text = text.replace(value, f"<{name}>")
    return text


def refuse_secrets(text: str, where: str) -> None:
    """Raise SpecError if `text` holds the value of a secret-looking environment variable."""
    for name, value in _secrets().items():
        if value in text:
            raise SpecError(f"{where} would hold the value of {name}; keep secrets in the environment and out of the plan")


def _secrets() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if len(value) >= _SHORTEST and _NAMES.search(name)}
