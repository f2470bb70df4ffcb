"""What an artifact was made from, and what that was made from: a graph over content digests.

An identity names its inputs by digest alone, so the artifacts that may occur are handed in: a whole store, or a stage's inputs.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.core.errors import DataError
from tasks.core.spec import Json, canonical, sha256
from tasks.core.store import FORMAT, MANIFEST, Artifact, Store

if TYPE_CHECKING:
    from rich.tree import Tree


@dataclass(frozen=True)
class Trace:
    """An artifact, and by name what its stage read: traced on, or the digest of a file or of what is no longer there."""

    artifact: Artifact
    inputs: "dict[str, Trace | str]" = field(default_factory=dict["str", "Trace | str"])

    def walk(self) -> "Iterator[Trace]":
        """Everything below, each once and inputs first, and then this."""
        seen: set[str] = set()

        def visit(trace: Trace) -> Iterator[Trace]:
            if trace.artifact.key not in seen:
                seen.add(trace.artifact.key)
                for _, below in sorted(trace.inputs.items()):
                    if isinstance(below, Trace):
                        yield from visit(below)
                yield trace

        yield from visit(self)

    def to_json(self) -> dict[str, Json]:
        """This artifact alone: what it is and what was asked for, never when or where."""
        return {
            "kind": self.artifact.kind,
            "key": self.artifact.key,
            "digest": self.artifact.digest,
            "stage": self.artifact.stage,
            "version": self.artifact.identity["version"],
            "spec": self.artifact.identity["spec"],
            "inputs": dict(sorted(self.artifact.inputs.items())),
        }

    def tree(self) -> "Tree":
        """For a rich console; what occurs twice is drawn out once."""
        from rich.text import Text
        from rich.tree import Tree

        drawn: set[str] = set()

        def grow(tree: Tree, trace: Trace) -> Tree:
            drawn.add(trace.artifact.key)
            for name, below in sorted(trace.inputs.items()):
                prefix = (f"{name}: ", "dim")
                if isinstance(below, str):
                    tree.add(Text.assemble(prefix, f"file sha256 {below[:12]}"))
                elif below.artifact.key in drawn and below.inputs:
                    tree.add(Text.assemble(prefix, *_label(below.artifact), (" (above)", "dim")))
                else:
                    grow(tree.add(Text.assemble(prefix, *_label(below.artifact))), below)
            return tree

        return grow(Tree(Text.assemble(*_label(self.artifact))), self)


def trace(store: Store, artifact: Artifact) -> Trace:
    """What `artifact` was made from, as far as `store` still holds it."""
    return trace_among(store.all(), artifact)


def trace_among(artifacts: Iterable[Artifact], artifact: Artifact, named: Mapping[str, Artifact] | None = None) -> Trace:
    """What `artifact` was made from, over `artifacts`.

    Of several with one digest, whose bytes are equal, the one that `named` has under the input's own name counts, else the first:
    two policies may well give the same answers.
    """
    known: defaultdict[str, list[Artifact]] = defaultdict(list)
    for candidate in artifacts:
        known[candidate.digest].append(candidate)
    done: dict[str, Trace] = {}

    def traced(one: Artifact, above: tuple[str, ...]) -> Trace:
        if one.key not in done:
            path = (*above, one.key)
            done[one.key] = Trace(one, {name: below(name, digest, path) for name, digest in one.inputs.items()})
        return done[one.key]

    def below(name: str, digest: str, path: tuple[str, ...]) -> Trace | str:
        own = named.get(name) if named else None
        candidates = [own, *known[digest]] if own and own.digest == digest else known[digest]
        # a stage that changed nothing has the digest of its input: it must not become its own ancestor
        found = next((one for one in candidates if one.key not in path), None)
        return traced(found, path) if found else digest

    return traced(artifact, ())


def opened(path: Path) -> Artifact:
    """The artifact in folder `path`.  Raises DataError where its manifest is missing or was altered."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        intact = manifest["format"] == FORMAT and manifest["key"] == sha256(canonical(manifest["identity"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an artifact (no readable {MANIFEST}); run again and it is rebuilt") from error
    if not intact:
        raise DataError(f"{path}: its {MANIFEST} was altered; run again and it is rebuilt")
    return Artifact(path, manifest)


def _label(artifact: Artifact) -> list[str | tuple[str, str]]:
    return [(artifact.stage, "bold"), f" {artifact.kind}/{artifact.key[:12]}", (f"  {artifact.created}", "dim")]
