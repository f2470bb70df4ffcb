"""Secrets stay in the environment: never in logs, manifests or artifacts."""

import os
import re

_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|AUTH_STRING|CONNECTION_URL", re.IGNORECASE)
_SHORTEST = 8
"""a shorter value would blank out ordinary words"""


def redact(text: str) -> str:
    """`text` with the value of every secret-looking environment variable replaced by its name."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _NAMES.search(name) and value in text:
            text = text.replace(value, f"<{name}>")
    return text
