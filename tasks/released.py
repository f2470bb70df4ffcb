"""`release.json`: what a release says of itself (docs/artifacts.md).  `tasks.release` writes it; everybody else reads it here."""

import json
from typing import Any

from tasks.core.errors import DataError
from tasks.core.store import Artifact

RELEASE_FILE = "release.json"


def release_record(release: Artifact) -> Any:  # noqa: ANN401
    """Its fields.  Raises DataError where the file is gone or not JSON."""
    try:
        return json.loads((release.path / RELEASE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"release {release.key[:12]}: {RELEASE_FILE} is not readable ({error}); `align rerun release PLAN` builds it again"
        ) from error
