"""Sending an exported folder to the Hugging Face hub: one commit, checked there file by file.

The token comes from HF_TOKEN in the environment and from nowhere else, and is in no message.
"""

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.core.errors import AlignError, MachineError, SpecError
from tasks.core.secrets import redact
from tasks.export import SUMS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKEN = "HF_TOKEN"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_REFUSED = (401, 403)


def check_push(repo: str) -> str:
    """The token to push to `repo` with.  Raises SpecError where that cannot work, before anything is written or sent."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SpecError(f"--push {repo}: no name of a repository ({str(error).splitlines()[0]})") from None
    if repo.count("/") != 1:
        raise SpecError(f"--push {repo}: a repository is called OWNER/NAME, for example my-team/my-model")
    if name := next((name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None):
        raise SpecError(f"--push {repo}: {name} is set, so the hub is not asked; unset it to push")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise SpecError(f"--push {repo}: {TOKEN} is not set; put a token that may write to {repo} into it")
    return token


def push(folder: Path, repo: str, token: str, *, public: bool, message: str) -> str:
    """Make `repo` hold what `folder` holds, by one commit called `message`; return the commit's address.

    A new repository is private unless `public`; one that is public already is refused without it, and one that holds what no
    export put there in any case.  Raises SpecError for these and where the hub refuses the token, MachineError where it cannot
    be reached or holds something else afterwards.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, endpoint=os.environ.get("HF_ENDPOINT"))
    with _said(folder, repo, token):
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(repo).private:
            raise SpecError(f"--push {repo}: it is there already and everybody can read it; --public says that you mean that")
        if foreign := _not_ours(api, repo):
            raise SpecError(
                f"--push {repo}: it holds what no `align export` put there ({', '.join(foreign[:3])}), which a push replaces; "
                "name a new repository"
            )
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, delete_patterns="*")
        if wrong := _differing(api, repo, done.oid, folder):
            raise MachineError(
                f"--push {repo}: the hub holds other bytes of {', '.join(wrong)} than {folder}; {_again(folder, repo)}"
            )
        return str(done.commit_url)


@contextmanager
def _said(folder: Path, repo: str, token: str) -> Generator[None]:
    """Whatever the client raises, in one sentence without the token."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code in _REFUSED:
            raise SpecError(
                f"--push {repo}: the hub refused the token in {TOKEN} ({code}); give one that may write to {repo.split('/')[0]}; "
                f"{_again(folder, repo)}"
            ) from None
        raise MachineError(f"--push {repo}: the hub answered {code}; {_again(folder, repo)}") from None
    except AlignError:
        raise
    except Exception as error:  # noqa: BLE001  the client, its transports and the network have errors of many families
        cause = error.__cause__ or error
        first = (str(cause).splitlines() or [""])[0].replace(token, "***")
        raise MachineError(f"--push {repo}: not sent ({type(cause).__name__}: {redact(first)}); {_again(folder, repo)}") from None


def _again(folder: Path, repo: str) -> str:
    return f"{folder} is whole, `hf upload {repo} {folder} .` sends it"


def _not_ours(api: "HfApi", repo: str) -> list[str]:
    """Names of files that are there, if no export left its list of checksums beside them."""
    there = [name for name in api.list_repo_files(repo) if name != ".gitattributes"]
    return [] if SUMS in there else there


def _differing(api: "HfApi", repo: str, commit: str, folder: Path) -> list[str]:
    """Names of files of `folder` that the hub lacks or holds otherwise at `commit`, by size and digest."""
    from huggingface_hub.hf_api import RepoFile

    there = {file.path: file for file in api.list_repo_tree(repo, recursive=True, revision=commit) if isinstance(file, RepoFile)}
    wrong: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (
            (file := there.get(name)) is None or not _same(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id, path)
        ):
            wrong.append(name)
    return wrong


def _same(size: int, sha256: str | None, blob: str, path: Path) -> bool:
    """Whether the hub's file is `path`: large ones by their sha256, others by git's name for their bytes."""
    if size != path.stat().st_size:
        return False
    with path.open("rb") as file:
        if sha256:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        data = file.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == blob
