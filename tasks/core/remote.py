# pyright: basic
"""Artifacts on shared storage: any fsspec URL (s3://, gs://, file://).  Payload first, manifest last, as on disk."""

from pathlib import Path

import fsspec


class Remote:
    """`<url>/<kind>/<key>/...`: pushed after a local build, or later if that failed; pulled when a key is missing here."""

    def __init__(self, url: str) -> None:
        """`url` is any fsspec URL of a folder."""
        self._files, self._root = fsspec.core.url_to_fs(url)

    def lacks(self, kind: str, key: str) -> bool:
        """Whether it is known not to be there.  Raises the file system's own error where that cannot be told."""
        try:
            self._files.info(self._manifest(kind, key))  # `exists` takes a passing 403 for an answer
        except FileNotFoundError:
            return True
        return False

    def push(self, path: Path, kind: str, key: str) -> None:
        """Copy a finished artifact out; a reader never sees its manifest before its payload."""
        there = f"{self._root}/{kind}/{key}"
        names = sorted(
            (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()),
            key=lambda name: (name == "manifest.json", name),
        )
        for name in names:
            self._files.makedirs(f"{there}/{name}".rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(path / name), f"{there}/{name}")

    def pull(self, kind: str, key: str, into: Path) -> bool:
        """Copy the artifact to `into/key`; False where there is none, or the storage is away.  A manifest comes last."""
        if not self._files.exists(self._manifest(kind, key)):
            return False
        (into / key).parent.mkdir(parents=True, exist_ok=True)
        self._files.get(f"{self._root}/{kind}/{key}/", f"{into / key}/", recursive=True)
        return True

    def _manifest(self, kind: str, key: str) -> str:
        return f"{self._root}/{kind}/{key}/manifest.json"
