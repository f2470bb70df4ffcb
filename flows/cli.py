"""The command `align`.  Heavy imports live inside the command bodies, so that `--help` is instant.

Exit codes: 0 fine, 1 a bug, 2 the plan or the data, 3 a gate, 4 the machine.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

cli = typer.Typer(
    rich_markup_mode=None,  # plain help: rich alone takes 90 ms to import
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="From a base model and data to a released, aligned model.  Example: align run flows/plans/demo.yaml",
)

PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="a plan file, for example flows/plans/demo.yaml")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="change one field, e.g. policy.beta=0.2")]
Json = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
StoreRoot = Annotated[Path | None, typer.Option("--store", help="the store; default ALIGN_STORE or ./store")]

Target = Annotated[str, typer.Argument(metavar="PLAN|RUN", help="a plan file, or a flow run that waits, by its name or id")]
Why = Annotated[str, typer.Option("--why", help="kept with the decision, and in the release")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="who decides; default: the user of this machine")]


def main() -> NoReturn:
    """Run the command line; an error is one sentence and an exit code, never a traceback."""
    try:
        sys.exit(cli(standalone_mode=True))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("ALIGN_TRACEBACK"):
            raise
        from flows.console import complain

        sys.exit(complain(error))


@cli.command()
def run(
    plan: PlanPath,
    set_: Set = None,
    record: Annotated[bool, typer.Option("--record", help="write the run to Prefect even if there is nothing to do")] = False,
    json_: Json = False,
) -> None:
    """Build what PLAN asks for and is missing, judge it, release it.  Example: align run flows/plans/demo.yaml"""
    from flows.execute import execute

    execute(plan, set_ or [], record=record, json_output=json_)


@cli.command()
def rerun(
    stage: Annotated[str, typer.Argument(help="name of the stage, as `align plan` prints it")],
    plan: PlanPath,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Build one STAGE of PLAN afresh; the rest comes from the store.  Example: align rerun dpo flows/plans/demo.yaml"""
    from flows.execute import execute

    execute(plan, set_ or [], stage=stage, json_output=json_)


@cli.command()
def plan(plan: PlanPath, set_: Set = None, json_: Json = False) -> None:
    """Show each stage of PLAN: built or missing, and which field changed.  Example: align plan flows/plans/demo.yaml"""
    from flows.console import out, steps_json, steps_table
    from flows.execute import look
    from flows.task_pipeline import load

    asked = load(plan, set_ or [])
    steps = list(look(asked).values())
    if json_:
        _print_json(steps_json(steps))
    else:
        out().print(steps_table(asked.name, steps))


@cli.command()
def search(
    plan: PlanPath,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="where the winner is written")] = None,
    rerun: Annotated[str | None, typer.Option("--rerun", metavar="STAGE", help="build this stage afresh")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show its stages, as far as they are known")] = False,
    json_: Json = False,
) -> None:
    """Find a method, its size and its learning rate for PLAN.  Example: align search flows/plans/search.yaml"""
    from flows.search import execute

    execute(plan, set_ or [], out, rerun=rerun, dry_run=dry_run, json_output=json_)


@cli.command()
def compare(
    plan: PlanPath,
    set_: Set = None,
    rerun: Annotated[str | None, typer.Option("--rerun", metavar="STAGE", help="build this stage afresh")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show its stages: built or missing, and why")] = False,
    json_: Json = False,
) -> None:
    """Train the methods PLAN compares and print what was measured of each.  Example: align compare flows/plans/compare.yaml"""
    from flows.compare import execute

    execute(plan, set_ or [], rerun=rerun, dry_run=dry_run, json_output=json_)


@cli.command()
def estimate(
    plan: PlanPath,
    set_: Set = None,
    probe: Annotated[bool, typer.Option("--probe", help="take a few real steps of each training stage")] = False,
    json_: Json = False,
) -> None:
    """Show memory and time of each stage of PLAN before it runs.  Example: align estimate flows/plans/demo.yaml"""
    from flows.estimate import show
    from flows.loading import load

    show(load(plan, set_ or []), run_probe=probe, json_output=json_)


@cli.command()
def advise(
    plan: Annotated[Path | None, typer.Argument(metavar="[PLAN]", help="take model and rows from a plan")] = None,
    model_size: Annotated[str | None, typer.Option(help="weights of the model: 135M, 7B")] = None,
    memory: Annotated[str | None, typer.Option(help="of the machine or GPU: 24GB; default: what is free here")] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="default: cuda where --memory is given")] = None,
    rows: Annotated[int | None, typer.Option(help="training rows", min=1)] = None,
    task: Annotated[str, typer.Option(help="chat, classification, preferences or generation")] = "chat",
    latency: Annotated[str, typer.Option(help="added time in use that is allowed: none or some")] = "some",
    forgetting: Annotated[str, typer.Option(help="of what the base knows: low or any")] = "any",
    adapters: Annotated[str, typer.Option(help="of one base in use: one or many")] = "one",
    store: StoreRoot = None,
    json_: Json = False,
) -> None:
    """Rank methods for a need, with reasons and a plan to start from.  Example: align advise --model-size 7B --memory 24GB"""
    from flows.advise import show

    asked = {"model_size": model_size, "memory": memory, "rows": rows, "device": device or ("cuda" if memory else "cpu")}
    wishes = {"task": task, "latency": latency, "forgetting": forgetting, "adapters": adapters}
    show(plan, {**asked, **wishes}, _store_root(store), json_output=json_)


@cli.command()
def gates(target: Target, set_: Set = None, store: StoreRoot = None, json_: Json = False) -> None:
    """Show the gates as judged last, and the evidence that a person decides on.  Example: align gates flows/plans/demo.yaml"""
    from flows.review import gates as shown

    shown(target, set_ or [], _store_root(store), json_output=json_)


@cli.command()
def approve(target: Target, why: Why, by: By = None, set_: Set = None, store: StoreRoot = None) -> None:
    """Allow the release that the gates leave to a person.  Example: align approve flows/plans/demo.yaml --why "reads better" """
    from flows.review import resolve

    resolve(target, "approve", why, by, set_ or [], _store_root(store))


@cli.command()
def reject(target: Target, why: Why, by: By = None, set_: Set = None, store: StoreRoot = None) -> None:
    """Refuse the release that the gates leave to a person.  Example: align reject flows/plans/demo.yaml --why "too terse" """
    from flows.review import resolve

    resolve(target, "reject", why, by, set_ or [], _store_root(store))


@cli.command()
def show(
    name: Annotated[str, typer.Argument(help="key of an artifact, or a run")], store: StoreRoot = None, json_: Json = False
) -> None:
    """Show an artifact by the start of its key, or a run by its name.  Example: align show 3f2a91"""
    from flows.inspect import show as shown

    shown(_store(store), name, json_output=json_)


@cli.command()
def report(
    target: Annotated[str, typer.Argument(metavar="PLAN|RUN", help="a plan file, for its last run, or a run by its name or id")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="default: beside the run's record in the store")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="show it in the browser")] = False,
    set_: Set = None,
    store: StoreRoot = None,
) -> None:
    """Write the report of a run as one HTML file, and say where it is.  Example: align report flows/plans/demo.yaml --open"""
    from flows.report import show

    show(_store(store), target, set_ or [], out, open_=open_)


@cli.command()
def diff(a: str, b: str, store: StoreRoot = None, json_: Json = False) -> None:
    """Show which fields of two artifacts differ, down to their inputs.  Example: align diff 3f2a91 77c0de"""
    from flows.inspect import diff as compared

    compared(_store(store), a, b, json_output=json_)


@cli.command()
def lineage(
    release: Annotated[str, typer.Argument(help="a channel, or the start of an artifact's key")], store: StoreRoot = None
) -> None:
    """Show everything an artifact was made of.  Example: align lineage champion"""
    from flows.inspect import lineage as traced

    traced(_store(store), release)


@cli.command()
def releases(
    channel: Annotated[str | None, typer.Argument(help="the whole history of this one")] = None,
    store: StoreRoot = None,
    json_: Json = False,
) -> None:
    """List the channels: what each points to, since when, by whom and why.  Example: align releases champion"""
    from flows.releases import show

    show(_store(store), channel, json_output=json_)


@cli.command()
def promote(
    release: Annotated[str, typer.Argument(help="the start of a release's key, or another channel")],
    channel: str,
    why: Annotated[str, typer.Option("--why", help="kept in the history")],
    by: By = None,
    store: StoreRoot = None,
) -> None:
    """Point CHANNEL to a RELEASE that is there.  Example: align promote staging champion --why "two days without complaints" """
    from flows.releases import point

    point(_store(store), release, channel, why, by)


@cli.command()
def rollback(
    channel: str,
    why: Annotated[str, typer.Option("--why", help="kept in the history")] = "",
    by: By = None,
    store: StoreRoot = None,
) -> None:
    """Point CHANNEL to the release before.  Example: align rollback champion --why "complaints about tone" """
    from flows.releases import roll_back

    roll_back(_store(store), channel, why, by)


@cli.command()
def export(
    release: Annotated[str, typer.Argument(help="a channel, or the start of a release's key")],
    folder: Annotated[Path, typer.Argument(help="a new or empty folder")],
    as_: Annotated[
        Literal["merged", "adapter"] | None, typer.Option("--as", help="a whole model, or the adapter alone; default: what it is")
    ] = None,
    for_: Annotated[
        Literal["vllm"] | None, typer.Option("--for", help="an adapter, or an error if this would not load it")
    ] = None,
    push: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="send it to the hub, by HF_TOKEN")] = None,
    public: Annotated[bool, typer.Option("--public/--private", help="who may read what is pushed")] = False,
    store: StoreRoot = None,
    json_: Json = False,
) -> None:
    """Write a release to FOLDER as other tools load it, with its card.  Example: align export champion ./my-model --as merged"""
    from flows.export import export as exported

    exported(_store(store), release, folder, form=as_, tool=for_, repo=push, public=public, json_output=json_)


@cli.command()
def gc(
    store: StoreRoot = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    keep_days: Annotated[float, typer.Option(help="keep whatever is younger")] = 14,
    json_: Json = False,
) -> None:
    """Delete artifacts that no release and no plan's last run needs.  Example: align gc --dry-run"""
    from flows.gc import collect

    collect(_store(store), dry_run=dry_run, keep_days=keep_days, json_output=json_)


@cli.command()
def methods(json_: Json = False) -> None:
    """List the fine-tuning methods and what each supports.  Example: align methods"""
    from flows.inspect import methods as listed

    listed(json_output=json_)


@cli.command()
def adapters(
    base: Annotated[str | None, typer.Option("--base", help="only those of this base")] = None,
    store: StoreRoot = None,
    json_: Json = False,
) -> None:
    """List the adapters in the store: base, method, size, data.  Example: align adapters --base smollm2-135m-instruct"""
    from flows.adapters import show as listed

    listed(_store(store), base, json_output=json_)


@cli.command()
def compose(
    parts: Annotated[list[str], typer.Argument(metavar="KEY=WEIGHT...", help="policies, by the start of their key, and weights")],
    how: Annotated[str, typer.Option("--how", help="cat (exact), linear, svd, ties, dare_linear, dare_ties, ...")] = "cat",
    rank: Annotated[int | None, typer.Option("--rank", help="of what svd writes")] = None,
    density: Annotated[float | None, typer.Option("--density", help="share of numbers that ties and dare keep")] = None,
    seed: Annotated[int, typer.Option("--seed", help="of what dare drops")] = 0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="where it runs")] = "auto",
    store: StoreRoot = None,
    json_: Json = False,
) -> None:
    """Put adapters of one base together, weighted, as a new policy.  Example: align compose 3f2a91=0.7 77c0de=0.3 --how cat"""
    from flows.adapters import compose as composed

    composed(_store(store), parts, json_output=json_, device=device, how=how, rank=rank, density=density, seed=seed)


@cli.command()
def chat(
    policy: Annotated[str, typer.Argument(help="a channel, a key, `base`, or a base by its name or folder")],
    other: Annotated[str | None, typer.Argument(help="another, to have both answer each prompt side by side")] = None,
    adapter: Annotated[list[str] | None, typer.Option("--adapter", help="another policy to switch to; may come again")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="an answer is cut here", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time", min=0)] = 0.0,
    seed: Annotated[int, typer.Option(help="of the draws", min=0)] = 0,
    system: Annotated[str, typer.Option("--system", help="instructions for the assistant")] = "",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="where it runs")] = "auto",
    store: StoreRoot = None,
    json_: Json = False,
) -> None:
    """Talk to POLICY, alone or with OTHER beside it, or answer a pipe.  Example: align chat champion staging"""
    from flows.chat import talk

    talk(
        _store(store, needed=False), policy, other, adapter or [], device=device, system=system, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, json_output=json_,
    )  # fmt: skip


@cli.command()
def continual(
    plan: PlanPath,
    set_: Set = None,
    rerun: Annotated[str | None, typer.Option("--rerun", metavar="STAGE", help="build this stage afresh")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show each stage: built or missing")] = False,
    json_: Json = False,
) -> None:
    """Learn task after task and measure what was forgotten.  Example: align continual flows/plans/continual.yaml"""
    from flows.continual import execute

    execute(plan, set_ or [], rerun=rerun, dry_run=dry_run, json_output=json_)


@cli.command()
def ui(
    port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 4200,
    database: Annotated[str | None, typer.Option(help="postgresql+asyncpg://... for a team; default SQLite")] = None,
    store: StoreRoot = None,
) -> None:
    """Run the Prefect server and UI on loopback; `align run` finds it.  Example: align ui --port 4200"""
    from flows.server import serve

    serve(_store_root(store), port, database or os.environ.get("ALIGN_DATABASE"))


@cli.command()
def deploy(plan: PlanPath, set_: Set = None) -> None:
    """Register PLAN and its schedule with the server, for `align worker`.  Example: align deploy flows/plans/nightly.yaml"""
    from flows.deploy import register

    register(plan, set_ or [])


@cli.command()
def worker(store: StoreRoot = None) -> None:
    """Serve deployed plans on this machine until interrupted.  Example: align worker"""
    from flows.deploy import work

    work(_store_root(store))


@cli.command()
def doctor(json_: Json = False) -> None:
    """Check this machine: versions, GPU, memory, model cache, server.  Example: align doctor"""
    from flows.inspect import doctor as checked

    checked(json_output=json_)


def _store_root(named: Path | None) -> Path:
    return (named or Path(os.environ.get("ALIGN_STORE") or "store")).absolute()


def _store(named: Path | None, *, needed: bool = True) -> Any:  # noqa: ANN401  the store's module is too slow to import for `--help`
    from tasks.core.errors import SpecError
    from tasks.core.store import Store

    root = _store_root(named)
    if not root.is_dir() and not needed:
        return None
    if not root.is_dir():
        raise SpecError(f"{root}: no store here; name one with --store, or build one with `align run`")
    return Store(root)


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
