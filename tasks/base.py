"""The base model: from the embedded package, a local folder or the hub into the model cache, and a policy that names it.

The artifact is `policy.json` alone, with the digest of every file, so two machines get the same artifact; the weights lie once in
the model cache.  Only safetensors, never remote code.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from tasks import smollm
from tasks.core.contract import Inputs, Metrics, Progress, Run, Stage
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.core.files import DigestCache, locked, remove, sync, tree, write_json
from tasks.core.launch import run_child
from tasks.core.spec import Json, Spec, canonical, sha256
from tasks.policy import (
    MODEL,
    PROCESSOR_FILES,
    RECORD,
    TEMPLATE,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    Base,
    PolicyRecord,
    base_path,
    check_base,
    find_template,
    is_seq2seq,
    read_record,
    sees,
    template_digest,
    tokenizer_digest,
    write_record,
)

LOCAL = "local"
_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_KEPT = ("generation_config.json", TEMPLATE, *TOKENIZER_FILES)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BaseSpec(Spec):
    """The model the plan starts from."""

    model: str
    """`smollm2-135m-instruct` (embedded), `org/name` on the hub, or `local` (the folder is the input `source`)"""
    revision: str | None = None
    """commit of a hub model, 40 hex digits; null for the others"""
    chat: bool = True
    """it must write text and, unless an encoder reads for it, have a chat template; a task head asks for neither"""

    @property
    def source(self) -> Literal["embedded", "local", "hub"]:
        """Where its files come from."""
        return "embedded" if self.model == smollm.NAME else "local" if self.model == LOCAL else "hub"

    @model_validator(mode="after")
    def _pinned(self) -> "BaseSpec":
        if self.source != "hub":
            if self.revision is not None:
                raise SpecError(f"base {self.model}: its content is its revision; leave `revision` out")
            return self
        if not _HUB.fullmatch(self.model):
            raise SpecError(
                f"base {self.model!r}: not a model; use {smollm.NAME} (embedded), a hub name such as org/name, or a folder "
                "written as ./folder or /folder"
            )
        if not _COMMIT.fullmatch(self.revision or ""):
            raise SpecError(
                f"base {self.model}: revision {self.revision!r} can move or is missing; give the 40-digit commit, which "
                f"`git ls-remote https://huggingface.co/{self.model} HEAD` prints"
            )
        return self


def base_request(model: str, revision: str | None, root: Path) -> tuple[BaseSpec, dict[str, Path]]:
    """Spec and inputs of BASE for a plan's `model`; one that starts with `.`, `/` or `~` is a folder seen from `root`."""
    if model.startswith((".", "/", "~")):
        return BaseSpec(model=LOCAL, revision=revision), {"source": root / Path(model).expanduser()}
    return BaseSpec(model=model, revision=revision), {}


def bring(spec: BaseSpec, inputs: Inputs, run: Run, *, what: str = "base") -> tuple[Base, Path]:
    """The model of `spec`, a `what`, in the model cache, and its folder there.  Inputs: source, for a local model alone."""
    if (spec.source == "local") != ("source" in inputs):
        raise SpecError(f"{what} {spec.model}: the input `source` belongs to the model `{LOCAL}`, and to no other")
    if spec.source == "local":
        kept = _chosen(inputs["source"], what, chat=spec.chat)
        base = Base(name=LOCAL, revision=_revision(kept, run.models), files={})
        folder = _install(base, run.models, partial(_link, kept))
    else:
        revision = f"git:{spec.revision}" if spec.revision else f"sha256:{smollm.SHA256}"
        base = Base(name=spec.model, revision=revision, files={})
        folder = _install(base, run.models, _fill(base, run, chat=spec.chat, what=what))
    return base.model_copy(update={"files": _digests(folder, run.models)}), folder


def build_base(spec: BaseSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Bring the model into the model cache and write its `policy.json`.  Inputs: source (a folder), for a local model alone."""
    base, folder = bring(spec, inputs, run)
    asked = spec.chat and not is_seq2seq(folder)
    template = template_digest(folder) if asked or find_template(folder) else None
    tokenizer = tokenizer_digest(folder)
    write_record(out, PolicyRecord(task="policy", base=base, tokenizer=tokenizer, template=template))
    return facts(folder)


def facts(folder: Path) -> Metrics:
    """How large a model in the cache is, and of which type."""
    return {
        "parameters": sum(prod(tensor["shape"]) for tensor in tensors(folder).values()),
        "bytes": sum(file.stat().st_size for file in tree(folder)),
        "model_type": _json(folder / _CONFIG).get("model_type"),
    }


BASE = Stage("base", 1, "policy", build_base)
"""inputs: none; source (a transformers folder) for a local model"""


def bring_bases(inputs: Inputs, run: Run) -> None:
    """Make the model cache hold the base of every policy and reward model in `inputs`; call it before a child loads one."""
    for path in inputs.values():
        if (path / RECORD).is_file() and not (path / MODEL).is_dir():
            materialise(read_record(path).base, run)


def on_base(job: str, spec: Spec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Run the child `job` once the model cache holds what its inputs are based on."""
    bring_bases(inputs, run)
    return run_child(job, spec, inputs, out, run)


def materialise(base: Base, run: Run) -> Path:
    """The folder of `base` in the model cache, brought there again if it is gone or was altered.

    Raises MachineError for a local model, whose source nobody but the plan knows, and DataError if other bytes came.
    """
    try:
        return check_base(run.models, base)
    except DataError as damage:
        if base.name == LOCAL:
            raise MachineError(
                f"{damage.args[0]} (`align rerun base PLAN` brings a local model into the cache again, "
                "`align rerun reward-model PLAN` a reward model)"
            ) from damage
        run.log(f"{base.name}: not intact in the model cache, bringing it there again")
    _install(base, run.models, _fill(base, run, chat=False))  # whoever built the artifact has asked what was to be asked
    return check_base(run.models, base)


def _fill(base: Base, run: Run, *, chat: bool, what: str = "base") -> Callable[[Path], None]:
    if base.name == smollm.NAME:
        return partial(smollm.write, progress=lambda done, total: run.progress(Progress(done, total, {})))
    return partial(_download, base, run, chat, what)


def _install(base: Base, models: Path, fill: Callable[[Path], None]) -> Path:
    """Have `fill` write `base` into its folder of the cache, unless it is there unaltered; one run writes, others wait."""
    folder = base_path(models, base)
    record = models / ".files" / f"{folder.name}.json"
    with locked(_lock(folder)):
        if folder.is_dir() and record.is_file() and _json(record) == _digests(folder, models):
            return folder
        draft = models / ".draft" / folder.name
        remove(draft)
        remove(folder)
        draft.mkdir(parents=True)
        fill(draft)
        for file in tree(draft):
            sync(file)
        record.parent.mkdir(exist_ok=True)
        digests: dict[str, Json] = {**_digests(draft, models)}
        write_json(record, digests)
        draft.rename(folder)
        sync(models)
    return folder


def _lock(folder: Path) -> Path:
    return folder.parent / ".locks" / folder.name


def _link(files: dict[str, Path], folder: Path) -> None:
    """Put `files` into `folder` as hard links, or copies where the filesystem has no links across."""
    for name, file in files.items():
        try:
            os.link(file.resolve(), folder / name)
        except OSError:
            shutil.copyfile(file, folder / name)


def _download(base: Base, run: Run, chat: bool, what: str, folder: Path) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    commit = base.revision.rpartition(":")[2]
    place = run.models / ".download" / folder.name  # kept when it breaks off: the next attempt goes on
    run.log(f"{base.name}: downloading commit {commit[:12]}")
    where = f"{what} {base.name} at {commit[:12]}"
    try:
        huggingface_hub.snapshot_download(  # pyright: ignore[reportUnknownMemberType]
            base.name, revision=commit, local_dir=place,
            allow_patterns=[_CONFIG, _WEIGHTS, _INDEX, "model-*.safetensors", *_KEPT],
        )  # fmt: skip
    except errors.GatedRepoError as error:
        raise SpecError(f"{where}: its owner asks for consent; accept the terms on its page and set HF_TOKEN") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise SpecError(
            f"{where}: the hub has no such model or commit; is it spelled right, or private without HF_TOKEN?"
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MachineError(
            f"{where}: cannot be downloaded ({reason:.200}); go online, or give a local copy of it as ./folder"
        ) from error
    _link(_chosen(place, where, chat=chat), folder)
    remove(place)


def _chosen(source: Path, where: str, *, chat: bool) -> dict[str, Path]:
    """The files of a transformers folder that are used.  Raises SpecError, which never names the folder, for one we refuse."""
    if not (source / _CONFIG).is_file():
        what = (
            "is an adapter, not a whole model; merge it into its base first"
            if (source / "adapter_config.json").is_file()
            else "has no config.json"
        )
        raise SpecError(f"{where}: the folder {what} (a base is what transformers' save_pretrained writes)")
    for name in (_CONFIG, TOKENIZER_CONFIG):
        if (source / name).is_file() and "auto_map" in _json(source / name):
            raise SpecError(
                f"{where}: {name} wants to run code of its own (auto_map), which is never done; use a model of a built-in type"
            )
    kinds: list[str] = _json(source / _CONFIG).get("architectures") or []
    seq2seq = is_seq2seq(source)
    more = ("ForConditionalGeneration", *(("ForImageTextToText",) if sees(source) else ())) if sees(source) or seq2seq else ()
    writes = ("ForCausalLM", "LMHeadModel", *more)
    if sees(source) and not any((source / name).is_file() for name in PROCESSOR_FILES[:2]):
        raise SpecError(f"{where}: it reads images, and there is no {PROCESSOR_FILES[0]}; save its processor beside it")
    if chat and kinds and not any(kind.endswith(writes) for kind in kinds):
        raise SpecError(f"{where}: a {kinds[0]} does not write text from left to right; use a language model")
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise SpecError(f"{where}: there is no tokenizer; save the model's tokenizer into the same folder")
    if chat and not seq2seq and find_template(source) is None:
        raise SpecError(
            f"{where}: the tokenizer has no chat template; add {TEMPLATE} (Jinja) to a local copy of the model and use that"
        )
    kept = [name for name in _KEPT if (source / name).is_file() and (sees(source) or name not in PROCESSOR_FILES[:3])]
    names = [_CONFIG, *_weights(source, where), *kept]
    return {name: source / name for name in names}


def _weights(source: Path, where: str) -> list[str]:
    if (source / _INDEX).is_file():
        shards = sorted(set(_json(source / _INDEX)["weight_map"].values()))
        for shard in shards:
            if "/" in shard or not (source / shard).is_file():
                raise SpecError(f"{where}: {_INDEX} names {shard}, which is not there; copy the missing part")
        return [_INDEX, *shards]
    if (source / _WEIGHTS).is_file():
        return [_WEIGHTS]
    if pickles := sorted(file.name for file in source.iterdir() if file.suffix in _PICKLES):
        raise SpecError(
            f"{where}: weights only as {pickles[0]}, a format that may run code when opened; load the model once where you trust "
            "it and write it again with save_pretrained, which writes safetensors"
        )
    raise SpecError(f"{where}: no weights ({_WEIGHTS} or {_INDEX}); was the model saved or downloaded whole?")


def _revision(files: dict[str, Path], models: Path) -> str:
    cache = DigestCache(models / ".digests.json")
    return f"sha256:{sha256(canonical({name: cache.digest(file) for name, file in files.items()}))}"


def _digests(folder: Path, models: Path) -> dict[str, str]:
    cache = DigestCache(models / ".digests.json")
    return {file.relative_to(folder).as_posix(): cache.digest(file) for file in tree(folder)}


def tensors(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> dtype and shape of every tensor in the weights; a tied head is stored, and so there, once."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            found |= json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {name: about for name, about in found.items() if name != "__metadata__"}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"base: {path.name} is not JSON ({error}); copy it again?") from error
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]
