"""Channels: names such as `champion` that point to a release, with their whole history.

A channel is one file, replaced at once under the store's lock and sealed with a digest of its own, so a torn one is noticed.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.core.errors import DataError, GateError, SpecError
from tasks.core.files import write_json
from tasks.core.spec import Json, canonical, sha256
from tasks.core.store import Artifact, Store
from tasks.released import release_record

_NAME = r"[a-z0-9][a-z0-9._-]*"
_REMEDY = "restore it from a backup, or delete it and promote a release again"


class Move(BaseModel):
    """The channel came to point to a release."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    action: Literal["promote", "rollback"]
    when: str
    """UTC, ISO 8601"""
    release: str
    """key of the release it points to since then"""
    digest: str
    why: str
    by: str = ""
    """who moved it: a person's name, or `run <name>`; empty in moves from before names were kept"""


class _Channel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    history: tuple[Move, ...]

    @property
    def standing(self) -> list[str]:
        """Releases promoted and not rolled back, the present one last."""
        keys: list[str] = []
        for move in self.history:
            if move.action == "promote":
                keys.append(move.release)
            else:
                keys.pop()
        return keys


def promote(store: Store, channel: str, release: Artifact, *, why: str = "", by: str = "", again: bool = False) -> bool:
    """Point `channel` to `release`; return whether it moved.

    A release that is in the history already moves nothing, nor does another release of a policy that was rolled back: a rerun
    never brings back what a person took out; `again` does.
    Raises GateError, unless `again`, if it was judged against a champion that the channel has left since, and DataError if the
    release, or the policy it is about, is damaged or gone.
    """
    if release.kind != "release":
        raise SpecError(f"{release.kind} {release.key[:12]}: only a release can be promoted to {channel}")
    with store.lock(f"channel-{_checked(channel)}"):
        known = _read(store, channel)
        if any(move.release == release.key for move in known.history) and (not again or known.standing[-1:] == [release.key]):
            return False
        released_policy(store, release)
        if not again:
            if release_record(release)["policy"]["digest"] in _taken_back(store, known):
                return False
            _refuse_unmet(store, known, release)
        _write(store, known, _move("promote", release, why, by))
    return True


def rollback(store: Store, channel: str, *, why: str, by: str = "") -> str:
    """Point `channel` to the release that was there before the present one; return its key.  SpecError without a reason."""
    if not why.strip():
        raise SpecError(f'{channel}: a rollback is kept with its reason, so give one, for example --why "complaints about tone"')
    with store.lock(f"channel-{_checked(channel)}"):
        known = _read(store, channel)
        if len(known.standing) < 2:
            there = f"only release {known.standing[0][:12]}" if known.standing else "no release"
            raise DataError(f"{channel}: {there} is in this channel, so there is nothing to go back to")
        release = store.at(f"release/{known.standing[-2]}")
        released_policy(store, release)
        _write(store, known, _move("rollback", release, why, by))
    return release.key


def channel(store: Store, name: str) -> str | None:
    """Key of the release that channel `name` points to; None if there is no such channel."""
    if not re.fullmatch(_NAME, name):
        return None
    standing = _read(store, name).standing
    return standing[-1] if standing else None


def standing(store: Store, name: str) -> list[str]:
    """Keys of the releases promoted to channel `name` and not rolled back, the present one last."""
    return _read(store, name).standing


def opponent(store: Store, keys: Sequence[str], policy: str) -> str | None:
    """The release that the policy of digest `policy` is to be compared with where the releases `keys` stand, oldest first.

    The last one; where that is of this very policy, what it was compared with itself: a plan that is asked again after it was
    released hears the verdict it heard before.  If its verdict names nobody, because no gate asked, the one that stood before.
    """
    for key in reversed(keys):
        release = store.find("release", key)
        record = release_record(release) if release else None
        if record is None or record["policy"]["digest"] != policy:
            return key
        if "champion" in record["verdict"]:
            met = record["verdict"]["champion"]
            return met and met["release"]
    return None


def history(store: Store, name: str) -> list[dict[str, str]]:
    """Every move of channel `name`, oldest first: action, when, release (its key), digest, why, by."""
    return [move.model_dump() for move in _read(store, name).history]


def channels(store: Store) -> list[str]:
    """Names of all channels."""
    return sorted(path.stem for path in store.folder("channels").glob("[a-z0-9]*.json"))


def released_policy(store: Store, release: Artifact, *, deep: bool = True) -> Artifact:
    """The policy of `release`.  Raises DataError if either is damaged, or the policy is not the one that was judged.

    Without `deep` only the bytes of files that were written to later are compared, see `Artifact.damage`.
    """
    if damage := release.damage(deep=deep):
        raise DataError(f"release {release.key[:12]}: {damage}, so it is not used; `align rerun release PLAN` builds it again")
    record = release_record(release)["policy"]
    policy = store.at(f"policy/{record['key']}")
    damage = policy.damage(deep=deep)
    if policy.digest != record["digest"]:
        damage = "it was built again and came out different from what was judged"
    if damage:
        where = f"policy {policy.key[:12]} of release {release.key[:12]}"
        raise DataError(f"{where}: {damage}, so it is not used; `align rerun {policy.stage} PLAN` builds it again")
    return policy


def _refuse_unmet(store: Store, known: _Channel, release: Artifact) -> None:
    """Raise GateError where `release` was judged against a champion, or against none yet, and another one stands by now."""
    record = release_record(release)
    if "champion" not in record["verdict"]:
        return
    met, policy = record["verdict"]["champion"], record["policy"]["digest"]
    judged, now = met and met["release"], opponent(store, known.standing, policy)
    if now != judged:
        raise GateError(
            f"{known.name}: release {release.key[:12]} was judged against {_named(judged)}, and the channel moved to "
            f"{_named(now)} since; run again and it is compared with that"
        )


def _taken_back(store: Store, known: _Channel) -> set[str]:
    """Digests of the policies that were rolled back and not brought back since."""
    standing: list[str] = []
    gone: set[str] = set()
    for move in known.history:
        if move.action == "promote":
            standing.append(move.release)
            gone -= _policy_of(store, move.release)
        else:
            gone |= _policy_of(store, standing.pop())
    return gone


def _policy_of(store: Store, key: str) -> set[str]:
    release = store.find("release", key)
    return {release_record(release)["policy"]["digest"]} if release else set()


def _named(key: str | None) -> str:
    return f"release {key[:12]}" if key else "no champion"


def _move(action: Literal["promote", "rollback"], release: Artifact, why: str, by: str) -> Move:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return Move(action=action, when=when, release=release.key, digest=release.digest, why=why, by=by)


def _path(store: Store, name: str) -> Path:
    return store.root / ".channels" / f"{name}.json"


def _checked(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise SpecError(f"{name}: a channel's name is lower-case letters, digits, dots, dashes and underscores")
    return name


def _write(store: Store, known: _Channel, move: Move) -> None:
    store.folder("channels")  # made by who writes: a dry run leaves nothing behind
    fields: dict[str, Json] = known.model_copy(update={"history": (*known.history, move)}).model_dump(mode="json")
    write_json(_path(store, known.name), {**fields, "seal": sha256(canonical(fields))})


def _read(store: Store, name: str) -> _Channel:
    path = _path(store, name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _Channel(name=name, history=())
    try:
        fields = json.loads(text)
        whole = fields.pop("seal") == sha256(canonical(fields))
        known = _Channel.model_validate(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: torn ({str(error).splitlines()[0]}); {_REMEDY}") from error
    if not whole or known.name != name:
        raise DataError(f"{path}: altered by hand, its seal does not match; {_REMEDY}")
    return known
