"""The adapters of a store: every policy or reward model whose last training left one.  Reads manifests and headers, no torch."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from tasks.core.errors import DataError
from tasks.core.spec import Json
from tasks.core.store import Artifact, Store
from tasks.policy import ADAPTERS, MODEL, RECORD, PolicyRecord, read_record

METHOD = "method.json"
"""beside an adapter's weights: the spec of the method that made it"""
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """One adapter, as a table shows it."""

    key: str
    kind: str
    base: str
    """name of the model it lies on"""
    on: str
    """what it lies on: base, a whole model of the policy's own, or with other adapters between"""
    stage: str
    method: str
    shape: dict[str, Json]
    """what its method was told, the name left out"""
    trained: int | None
    """weights that were trained; None for what was put together from others"""
    kept: int
    """numbers in its file: what computes vectors is dropped, and a start that is taken out of the base is kept beside"""
    bytes: int
    made_by: str | None
    """plan and run that built it; None where no record is left"""
    data: str | None
    """what it was trained on: the sources' names and the start of the artifact's key"""
    created: str

    def to_json(self) -> dict[str, Json]:
        """For machines."""
        return asdict(self)


def adapters(store: Store, base: str | None = None) -> list[Adapter]:
    """Every adapter of `store`, of the base called `base` if one is named; oldest first.

    Raises DataError where `base` is the name of no base, saying which there are.
    """
    artifacts = list(store.all())
    runs = _runs(store)
    by_digest = {artifact.digest: artifact for artifact in reversed(artifacts)}
    found: list[Adapter] = []
    names: set[str] = set()
    for artifact, record in policies(artifacts):
        names.add(record.base.name)
        if record.adapters and (base is None or record.base.name == base):
            found.append(_adapter(artifact, record, runs.get(store.ref(artifact)), by_digest))
    if base is not None and base not in names:
        raise DataError(f"{base}: no model in this store has this base; there are {', '.join(sorted(names)) or 'none'}")
    return found


def policies(artifacts: list[Artifact]) -> Iterator[tuple[Artifact, PolicyRecord]]:
    """Policies and reward models with their records."""
    for artifact in artifacts:
        if artifact.kind in ("policy", "reward_model") and (artifact.path / RECORD).is_file():
            yield artifact, read_record(artifact.path)


def parameters(weights: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with weights.open("rb") as file:
        header: dict[str, dict[str, Any]] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def method_of(folder: Path) -> dict[str, Json]:
    """The spec of the method that made the adapter in `folder`; empty for one that does not say."""
    path = folder / METHOD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _adapter(artifact: Artifact, record: PolicyRecord, run: str | None, by_digest: dict[str, Artifact]) -> Adapter:
    last, link = record.adapters[-1], record.chain[-1]
    folder = artifact.path / ADAPTERS / last
    own = "its own model" if (artifact.path / MODEL).is_dir() else "base in 4 bits" if record.quantization else "base"
    trained = artifact.metrics.get("trainable_parameters")
    return Adapter(
        key=artifact.key,
        kind=artifact.kind,
        base=record.base.name,
        on=" + ".join([own, *record.adapters[:-1]]),
        stage=link.stage,
        method=link.method,
        shape={name: value for name, value in method_of(folder).items() if name != "name"},
        trained=trained if isinstance(trained, int) else None,
        kept=parameters(folder / WEIGHTS),
        bytes=sum(file.stat().st_size for file in folder.iterdir()),
        made_by=run,
        data=_data(artifact, by_digest),
        created=artifact.created,
    )


def _data(artifact: Artifact, by_digest: dict[str, Artifact]) -> str | None:
    """`instructions 3f2a91bc04de (facts.jsonl)`; what a composed policy was put together from is its inputs."""
    parts: list[str] = []
    for name, digest in sorted(artifact.inputs.items()):
        if name != "data" and not name.startswith("part_"):
            continue
        below = by_digest.get(digest)
        parts.append(f"{below.kind} {below.key[:12]}{_sources(below, by_digest)}" if below else f"data {digest[:12]}")
    return ", ".join(parts) or None


def _sources(data: Artifact, by_digest: dict[str, Artifact]) -> str:
    spec: Any = data.identity["spec"]
    names = [str(source["name"]) for source in spec.get("sources", ())]
    if not names:  # made from other data, as a mixture is
        below = [by_digest[digest] for digest in data.inputs.values() if digest in by_digest]
        specs: list[Any] = [one.identity["spec"] for one in below]
        names = sorted({str(source["name"]) for one in specs for source in one.get("sources", ())})
    return f" ({', '.join(names)})" if names else ""


def _runs(store: Store) -> dict[str, str]:
    """`kind/key` -> plan and run that built it, else the first that used it."""
    built: dict[str, str] = {}
    used: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(store.folder("runs").glob("*.json"), key=lambda file: file.stat().st_mtime_ns):
        record = json.loads(path.read_text(encoding="utf-8"))
        name = f"{record['plan']['name']} ({record['run']})"
        for step in record.get("steps", {}).values():
            if ref := step["artifact"]:
                used[ref].append(name)
                if step["state"] == "Completed":
                    built.setdefault(ref, name)
    return {ref: built.get(ref, names[0]) for ref, names in used.items()}
