"""The store: immutable artifacts under `<root>/<kind>/<key>/`, where a manifest *means* complete.

Built in a private work folder on the same filesystem, synced, manifest last, renamed into place.  What is torn, truncated or
altered is never used: it is set aside under `.aside/` and built again.  With `remote` (any fsspec URL) artifacts are shared
between machines and the local root is the read cache.
"""

import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tasks.core.contract import Cost, Identity, Kind, Metrics
from tasks.core.errors import DataError
from tasks.core.files import DigestCache, file_digest, locked, remove, sync, tree, write_json
from tasks.core.provenance import provenance, spent
from tasks.core.secrets import refuse_secrets
from tasks.core.spec import Json, canonical, sha256

if TYPE_CHECKING:
    from tasks.core.remote import Remote

FORMAT = 1
MANIFEST = "manifest.json"
Write = Callable[[Path, Path], tuple[Metrics, Cost]]
"""`(out, work) -> metrics, cost`: write the payload under `out`; `work` outlives a killed attempt"""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: a folder and its manifest."""

    path: Path
    manifest: dict[str, Json]

    @property
    def kind(self) -> str:
        """One of the store's kinds."""
        return str(self.manifest["kind"])

    @property
    def key(self) -> str:
        """sha256 of what was asked for."""
        return str(self.manifest["key"])

    @property
    def digest(self) -> str:
        """sha256 of what came out."""
        return str(self.manifest["digest"])

    @property
    def stage(self) -> str:
        """Name of the stage that built it."""
        return str(self.identity["stage"])

    @property
    def identity(self) -> dict[str, Json]:
        """Everything that decided it."""
        return self.manifest["identity"]  # pyright: ignore[reportReturnType]

    @property
    def metrics(self) -> Metrics:
        """The numbers its stage returned."""
        return self.manifest["metrics"]  # pyright: ignore[reportReturnType]

    @property
    def provenance(self) -> dict[str, Json]:
        """When, on what, with which versions; never part of the identity."""
        return self.manifest["provenance"]  # pyright: ignore[reportReturnType]

    @property
    def created(self) -> str:
        """UTC time of the build, ISO 8601."""
        return str(self.provenance["created"])

    @property
    def inputs(self) -> dict[str, str]:
        """Input name -> content digest."""
        return self.identity["inputs"]  # pyright: ignore[reportReturnType]

    def damage(self, *, deep: bool = False) -> str | None:
        """What is wrong with the payload, or None.

        Sizes are always compared.  Bytes are compared where a file changed after the manifest was written, and with `deep`
        everywhere.
        """
        sealed = (self.path / MANIFEST).stat().st_mtime_ns
        listed: dict[str, dict[str, Json]] = self.manifest["files"]  # pyright: ignore[reportAssignmentType]
        found = {file.relative_to(self.path).as_posix() for file in tree(self.path)} - {MANIFEST}
        if extra := sorted(found - listed.keys()):
            return f"{extra[0]} does not belong to it"
        for name, record in listed.items():
            if name not in found:
                return f"{name} is missing"
            stat = (self.path / name).stat()
            if stat.st_size != record["size"]:
                return f"{name} has {stat.st_size} bytes instead of {record['size']}"
            if (deep or stat.st_mtime_ns > sealed) and file_digest(self.path / name) != record["sha256"]:
                return f"{name} was altered"
        return None


class Store:
    """Artifacts by kind and key, local with an optional remote behind."""

    def __init__(self, root: Path, remote: str | None = None) -> None:
        """Keep artifacts under `root`, shared through the folder `remote`, an fsspec URL."""
        self.root = root.absolute()
        self.digests = DigestCache(self.root / ".digests.json")
        self._remote = _opened(remote) if remote else None

    # -- reading ------------------------------------------------------------------------------------------------

    def find(self, kind: str, key: str) -> Artifact | None:
        """The intact artifact of `key`, or None; a damaged one is set aside, a remote one is brought here."""
        path = self._place(kind, key)
        if artifact := self._read(path):
            damage = artifact.damage()
            if damage is None:
                return artifact
            self._set_aside(path, damage)
        elif path.exists():
            self._set_aside(path, "its manifest is missing or unreadable")
        return self._pull(kind, key) if self._remote else None

    def all(self) -> Iterator[Artifact]:
        """Every artifact here with a readable manifest, oldest first."""
        paths = [path for kind in get_args(Kind) for path in (self.root / kind).glob("*/" + MANIFEST)]
        for path in sorted(paths, key=lambda manifest: (manifest.stat().st_mtime_ns, manifest)):
            if artifact := self._read(path.parent):
                yield artifact

    def ref(self, artifact: Artifact) -> str:
        """How stages name an artifact to each other: `kind/key`."""
        return f"{artifact.kind}/{artifact.key}"

    def at(self, ref: str) -> Artifact:
        """The artifact of a reference.  Raises DataError if it is gone."""
        kind, _, key = ref.partition("/")
        if artifact := self.find(kind, key):
            return artifact
        raise DataError(f"{ref}: it was here when its stage ended and is gone or damaged now; run again and it is rebuilt")

    def named(self, prefix: str) -> Artifact:
        """The one artifact whose key or digest starts with `prefix`.  Raises DataError for none or several."""
        found = [a for a in self.all() if a.key.startswith(prefix) or a.digest.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise DataError(f"{prefix}: no artifact in {self.root} has this key or digest; see `align plan`")
        names = ", ".join(f"{a.kind} {a.key[:12]}" for a in found[:4])
        raise DataError(f"{prefix}: {len(found)} artifacts match ({names}); give more characters of the key")

    # -- building -----------------------------------------------------------------------------------------------

    def build(self, identity: Identity, write: Write, *, fresh: bool = False) -> tuple[Artifact, bool]:
        """Return the artifact of `identity` and whether it was built now; `fresh` builds it whatever is there.

        Of several runs at once one builds and the others wait for it and return its artifact.
        """
        before = time.time()
        if not fresh and (found := self.find(identity.kind, identity.key)):
            return found, False
        with self.lock(identity.key):
            found = self.find(identity.kind, identity.key)
            if found and (not fresh or (found.path / MANIFEST).stat().st_mtime > before):
                return found, False  # another run finished it while this one waited
            work = self.scratch(identity.key)
            out = work / "out"
            remove(out)
            out.mkdir(parents=True)
            metrics, cost = write(out, work)
            artifact = self._commit(identity, out, metrics, cost)
            remove(work)
        if self._remote:
            self._remote.push(artifact.path, artifact.kind, artifact.key)
        return artifact, True

    def share(self, artifact: Artifact) -> bool:
        """Push `artifact` if there is a remote that lacks it, as after a push that failed; return whether it was pushed.

        Raises the file system's own error where it cannot be told: a good copy that others read is never pushed over.
        """
        if self._remote is None or not self._remote.lacks(artifact.kind, artifact.key):
            return False
        self._remote.push(artifact.path, artifact.kind, artifact.key)
        return True

    def scratch(self, key: str) -> Path:
        """Where the artifact of `key` is being built; kept when the build dies."""
        return self.root / ".work" / key

    def _commit(self, identity: Identity, out: Path, metrics: Metrics, cost: Cost) -> Artifact:
        files: dict[str, Json] = {}
        for file in tree(out):
            file.chmod(0o444)
            sync(file)
            files[file.relative_to(out).as_posix()] = {"size": file.stat().st_size, "sha256": file_digest(file)}
        if not files:
            raise DataError(f"{identity.fields['stage']}: the stage wrote nothing")
        digest = payload_digest(files)
        manifest: dict[str, Json] = {
            "format": FORMAT,
            "kind": identity.kind,
            "key": identity.key,
            "digest": digest,
            "identity": identity.fields,
            "files": files,
            "metrics": metrics,
            "provenance": provenance() | spent(cost),
        }
        refuse_secrets(canonical(manifest), f"{identity.fields['stage']}: its manifest")  # what JSON cannot hold raises here too
        write_json(out / MANIFEST, manifest)
        place = self._place(identity.kind, identity.key)
        place.parent.mkdir(parents=True, exist_ok=True)
        if (old := self._read(place)) and old.digest == digest and old.damage(deep=True) is None:
            os.utime(place / MANIFEST)  # built again and came out equal: keep it, note when
            return old
        if place.exists():
            self._set_aside(place, "it was built again and came out different")
        try:
            out.rename(place)
        except OSError:
            if winner := self.find(identity.kind, identity.key):
                return winner  # a machine that does not see our locks was first
            raise
        sync(place.parent)
        return Artifact(place, manifest)

    # -- housekeeping -------------------------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        """A folder of the store's own records (`channels`, `runs`, ...), made on demand."""
        path = self.root / f".{name}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def lock(self, name: str) -> Generator[None]:
        """Hold a named lock of this store; a dead holder holds nothing."""
        with locked(self.root / ".locks" / name):
            yield

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def _read(self, path: Path) -> Artifact | None:
        try:
            manifest: dict[str, Json] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        intact = (
            isinstance(manifest, dict)  # pyright: ignore[reportUnnecessaryIsInstance]  a torn file holds anything
            and manifest.get("format") == FORMAT
            and manifest.get("key") == path.name == sha256(canonical(manifest.get("identity")))
            and manifest.get("digest") == payload_digest(manifest.get("files"))
        )
        return Artifact(path, manifest) if intact else None

    def _set_aside(self, path: Path, why: str) -> None:
        aside = self.folder("aside") / f"{path.parent.name}-{path.name[:12]}-{time.time_ns()}"
        try:
            path.rename(aside)
        except FileNotFoundError:
            return  # another run set it aside first
        write_json(aside.with_suffix(".json"), {"was": f"{path.parent.name}/{path.name}", "why": why})

    def _pull(self, kind: str, key: str) -> Artifact | None:
        assert self._remote is not None
        draft = self.root / ".work" / f"pull-{key}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            if not self._remote.pull(kind, key, draft):
                return None
            place = self._place(kind, key)
            (draft / key).parent.mkdir(parents=True, exist_ok=True)
            os.utime(draft / key / MANIFEST)
            artifact = self._read(draft / key)
            if artifact is None or artifact.damage(deep=True):
                return None  # a damaged remote copy is as good as none: it is built again and pushed over
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                (draft / key).rename(place)
            except OSError:
                if not place.exists():
                    raise
            return self._read(place)
        finally:
            remove(draft)


def _opened(url: str) -> "Remote":
    from tasks.core.remote import Remote  # fsspec is slow to import and most stores are local

    return Remote(url)


def payload_digest(files: Json) -> str:
    """sha256 over the payload's file digests."""
    if not isinstance(files, dict):
        return ""
    return sha256(canonical({name: record["sha256"] for name, record in files.items() if isinstance(record, dict)}))
