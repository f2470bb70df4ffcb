"""`align export`: a release as a folder that other tools load, and to the Hugging Face hub where that is asked for."""

import tempfile
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from evals.report import headline
from flows.console import out
from flows.inspect import echo_json, release_named
from flows.plan_parts import models_folder
from tasks.channels import released_policy
from tasks.core.build import Workshop
from tasks.core.contract import Execution, Run
from tasks.core.errors import SpecError
from tasks.core.store import Store
from tasks.export import Exported, Form, refuse_taken, source, vllm_says, write
from tasks.hub import check_push, push
from tasks.released import release_record


def export(
    store: Store,
    name: str,
    folder: Path,
    *,
    form: Form | None = None,
    tool: Literal["vllm"] | None = None,
    repo: str | None = None,
    public: bool = False,
    json_output: bool = False,
) -> None:
    """Write the release called `name` to `folder` and say who loads it; then send it to `repo`, if one is named."""
    release = release_named(store, name)
    if release.kind != "release":
        raise SpecError(f"{name}: this is of kind {release.kind}; export takes a release or a channel")
    if public and not repo:
        raise SpecError("--public: it says who may read what --push sends; name a repository with --push OWNER/NAME")
    if tool and form == "merged":
        raise SpecError(f"--for {tool}: it checks an adapter, and {tool} serves a merged folder as it is; leave one of both out")
    refuse_taken(folder)
    token = check_push(repo) if repo else ""
    said = Console(stderr=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="align-export-") as work:
        run = Run(Path(work), models_folder(), Execution(), log=lambda line: said.print(Text(line, style="dim")))
        workshop = Workshop(store, run.models, run.execution)
        given = source(workshop, release, released_policy(store, release), "adapter" if tool else form, run)
        if tool and (problems := vllm_says(given).problems):
            raise SpecError(f"release {release.key[:12]}: vLLM would not serve it: {'; '.join(problems)}; `--as merged` it would")
        done = write(given, release, folder)
    url = None
    if repo:
        record = release_record(release)["verdict"]
        url = push(folder, repo, token, public=public, message=f"Release {release.key[:12]}, {headline(record)[2:]}")
    _tell(done, url, json_output=json_output)


def _tell(done: Exported, url: str | None, *, json_output: bool) -> None:
    if json_output:
        vllm = done.vllm and {"loads": not done.vllm.problems, "problems": done.vllm.problems, "command": done.vllm_command}
        about = {"release": done.release.key, "digest": done.release.digest, "form": done.form, "base": done.base}
        echo_json({"folder": str(done.folder), **about, "files": done.files, "vllm": vllm, "pushed": url})
        return
    lines = [f"{done.folder}: release {done.release.key[:12]}, {_how(done)}", *_vllm(done), *([f"hub: {url}"] if url else [])]
    for line in lines:
        out().print(line, markup=False, soft_wrap=True)


def _how(done: Exported) -> str:
    if done.form == "merged":
        return f"a whole model: transformers.{done.auto}.from_pretrained"
    below = "of base/" if done.beside else done.base
    more = "" if done.peft else ", by alignflow alone: PEFT has no such adapters"
    return f"an adapter: peft.PeftModel.from_pretrained(model {below}, this folder){more}"


def _vllm(done: Exported) -> list[str]:
    if done.vllm is None:
        return []
    if done.vllm.problems:
        return [f"vLLM: does not serve it: {'; '.join(done.vllm.problems)}"]
    return [f"vLLM: loads (`{done.vllm_command}`)"]
