"""Where an artifact came from beside its identity: when, on what, with which versions.  Never hashed."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tasks.core.contract import Cost
from tasks.core.spec import Json

_PACKAGES = ("alignflow", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "duckdb", "datasets", "prefect")
ROOT = Path(__file__).resolve().parents[2]
"""the checkout this runs from"""


def provenance() -> dict[str, Json]:
    """A record of now, this machine and these versions."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": _versions(),
        "commit": _commit(),
    }


def spent(cost: Cost) -> dict[str, Json]:
    """The record of what a build took: seconds by the clock; of its children, where it had some, CPU seconds and peak memory."""
    taken: dict[str, Json] = {"seconds": round(cost.seconds, 3)}
    if cost.usage:
        taken |= {**cost.usage._asdict(), "cpu_seconds": round(cost.usage.cpu_seconds, 3)}
    return taken


@cache
def _versions() -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@cache
def _commit() -> str | None:
    try:
        git = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()
