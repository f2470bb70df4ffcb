"""What an artifact was made of: its inputs by content digest, down to the raw files."""

from dataclasses import dataclass

from tasks.core.store import Artifact, Store


@dataclass(frozen=True)
class Trace:
    """An artifact and what went into it; a raw file, or an input that is gone, is its sha256."""

    artifact: Artifact
    inputs: "dict[str, Trace | str]"


def trace(store: Store, artifact: Artifact) -> Trace:
    """Follow the inputs of `artifact` through `store`; of several artifacts with one content, the oldest is named."""
    by_digest: dict[str, Artifact] = {}
    for known in store.all():
        by_digest.setdefault(known.digest, known)
    return _trace(by_digest, artifact)


def _trace(by_digest: dict[str, Artifact], artifact: Artifact) -> Trace:
    inputs: dict[str, Trace | str] = {}
    for part, digest in artifact.inputs.items():
        below = by_digest.get(digest)
        inputs[part] = _trace(by_digest, below) if below else digest
    return Trace(artifact, inputs)
