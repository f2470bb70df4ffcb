"""Channels for people: which release each points to, since when, by whom and why; and moving one by hand."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evals.report import headline
from flows.console import me, out
from flows.inspect import echo_json, release_named
from tasks.channels import channel, channels, history, promote, rollback
from tasks.core.errors import DataError, SpecError
from tasks.core.store import Store
from tasks.released import release_record
from tasks.review import said

_LATEST = 5
"""moves of a channel that the list of all channels shows"""
_DONE = {"promote": "promoted", "rollback": "rolled back"}


def show(store: Store, name: str | None, *, json_output: bool) -> None:
    """Print every channel with its latest moves, newest first; of one channel called `name`, all of them."""
    known = channels(store)
    if name is not None and name not in known:
        raise DataError(f"{name}: no such channel in {store.root}; there are {', '.join(known) or 'none'}")
    found = {one: [move | _of(store, move["release"]) for move in history(store, one)] for one in ([name] if name else known)}
    if json_output:
        echo_json(found)
        return
    if not found:
        out().print("no channel yet; a passing `align run` makes one, and `align promote` another")
        return
    most = None if name else _LATEST
    for number, (one, moves) in enumerate(found.items()):
        out().print(*([""] if number else []), _block(one, moves, most), sep="\n")


def point(store: Store, name: str, target: str, why: str, by: str | None) -> None:
    """Point the channel `target` to the release called `name`; a person does it, so there is a reason and a name."""
    release = release_named(store, name)
    if release.kind != "release":
        raise SpecError(f"{name}: this is of kind {release.kind}; a channel points to a release, see `align releases`")
    why, by = said(why, me() if by is None else by)
    moved = promote(store, target, release, why=why, by=by, again=True)
    _tell(f"{target} = release {release.key[:12]}, {'promoted' if moved else 'where it pointed already; nothing is noted'}", by)


def roll_back(store: Store, name: str, why: str, by: str | None) -> None:
    """Point the channel `name` to the release before the present one."""
    before = channel(store, name)
    if why.strip():  # else `rollback` refuses it
        why, by = said(why, me() if by is None else by)
    key = rollback(store, name, why=why, by=by or "")
    _tell(f"{name} = release {key[:12]}, rolled back from {(before or '')[:12]}", by or "")


def _tell(line: str, by: str) -> None:
    out().print(f"{line}, by {by}", markup=False, soft_wrap=True)


def _of(store: Store, key: str) -> dict[str, str | None]:
    """What a release says of itself: its model's name and its verdict in a line; nulls where it is gone or damaged."""
    release = store.find("release", key)
    try:
        record: dict[str, Any] | None = release_record(release) if release else None
    except DataError:
        record = None
    if record is None:
        return {"name": None, "verdict": None}
    approval = record.get("approval")
    return {
        "name": record["name"],
        "verdict": headline(record["verdict"]) + (f", approved by {approval['by']}" if approval else ""),
    }


def _block(name: str, moves: list[dict[str, Any]], most: int | None) -> Group:
    """A channel: what it points to, then its moves in a grid whose last column takes what room there is."""
    newest = list(reversed(moves))
    now = newest[0]
    head = Text.assemble((name, "bold"), f" = release {now['release'][:12]}", f" ({now['name']})" if now["name"] else "")
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in ("when (UTC)", "move", "release"):
        grid.add_column(column, no_wrap=True)
    grid.add_column("who, why, verdict", overflow="fold")
    for move in newest[:most]:
        lines = [Text.assemble((move["by"] or "unknown", "bold"), f": {move['why']}" if move["why"] else "")]
        lines.append(Text(move["verdict"] or "the release is gone", style="dim"))
        grid.add_row(move["when"][:16].replace("T", " "), _DONE[move["action"]], move["release"][:12], Group(*lines))
    rest = len(newest) - len(newest[:most])
    more = [Text(f"{rest} earlier: align releases {name}", style="dim")] if rest else []
    return Group(head, grid, *more)
