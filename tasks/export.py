"""A release as a folder that other tools load: the whole model, or the adapter that goes on its base, with a card that fits.

No path of this machine gets into it, `SHA256SUMS` names every file, and it appears whole or not at all.
"""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tasks.base import bring_bases, materialise
from tasks.chain import check_merge
from tasks.core.build import Workshop
from tasks.core.contract import Run
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.core.files import file_digest, remove
from tasks.core.store import Artifact
from tasks.heads import FORMS, read_head
from tasks.merge import MERGE, MergeSpec
from tasks.methods import METHODS, AnyMethod
from tasks.policy import ADAPTERS, MODEL, TEMPLATE, TOKENIZER_FILES, PolicyRecord, is_seq2seq, read_record, sees_images
from tasks.release import AUTO_CLASSES, CARD_FILE, auto_class
from tasks.released import release_record
from tasks.vllm_format import CONFIG, VllmLora, vllm_lora

Form = Literal["merged", "adapter"]
SUMS = "SHA256SUMS"
GENERATION = "generation_config.json"
USAGE = Path(__file__).parent / "templates" / "usage.md.j2"
_LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*")
_SOFT = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
_OWN_TYPES = ("BOTTLENECK", "BITFIT", "HEAD_TUNING", "SEQ2SEQ_PREFIX")
"""adapters of our own methods, which PEFT loads after `tasks.training.methods.known.make_all_known` alone"""
_MERGED = "`--as merged` writes the whole model"


@dataclass(frozen=True)
class Source:
    """What a folder is made of."""

    policy: Artifact
    record: PolicyRecord
    model: Path
    """the whole model, or the one below the adapter"""
    adapter: Path | None = None
    beside: bool = False
    """the model below the adapter goes along, in `base/`"""

    @property
    def form(self) -> Form:
        """What it becomes."""
        return "adapter" if self.adapter else "merged"

    def peft(self) -> dict[str, Any]:
        """The adapter's config; empty for a whole model."""
        return _json(self.adapter / CONFIG) if self.adapter else {}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    release: Artifact
    form: Form
    base: str
    """what the card calls the model below"""
    files: dict[str, str]
    """path in the folder -> sha256"""
    vllm: VllmLora | None
    """what vLLM says to the adapter; None for a whole model"""
    vllm_command: str | None
    peft: bool
    """whether PEFT alone loads the adapter"""
    auto: str
    """the class of transformers that loads the whole model, or the one below"""
    beside: bool
    """whether the model below lies in `base/`"""


def source(workshop: Workshop, release: Artifact, policy: Artifact, form: Form | None, run: Run) -> Source:
    """Where `form` of the release's `policy` comes from; None is what it is, with the model below where that is an adapter.

    A merge that was never made is made now, certified, and kept in the store.  Raises SpecError for a form it cannot have.
    """
    record = read_record(policy.path)
    where = f"release {release.key[:12]}"
    if form == "merged" or not (record.adapters or form):
        return _merged(workshop, release, policy, record, run)
    if form == "adapter":
        policy, record = _alone(workshop, release, policy, record, where)
    if len(record.adapters) > 1:
        several = " and ".join(record.adapters)
        raise SpecError(f"{where}: {several} lie on top of each other, and other tools load one adapter; {_MERGED}")
    adapter = policy.path / ADAPTERS / record.adapters[0]
    if form == "adapter" and (own := _json(adapter / CONFIG)["peft_type"]) in _OWN_TYPES:
        rest = _MERGED if METHODS[record.chain[-1].method].merges_into else "export it without --as, for alignflow itself"
        raise SpecError(f"{where}: PEFT has no {own} adapters, so no other tool would load it; {rest}")
    below = policy.path / MODEL if (policy.path / MODEL).is_dir() else materialise(record.base, run)
    return Source(policy, record, below, adapter, beside=form is None)


def _merged(workshop: Workshop, release: Artifact, policy: Artifact, record: PolicyRecord, run: Run) -> Source:
    if record.adapters:
        check_merge(*(cast(AnyMethod, METHODS[link.method].spec()) for link in record.chain if link.adapter))
        run.log(f"merging {' and '.join(record.adapters)} into {record.base.name}, and comparing the two")
        name, data = _compared_on(workshop, release, record)
        bring_bases({"policy": policy.path}, run)
        policy, _ = workshop.build(MERGE, MergeSpec(), {"policy": policy, name: data}, run=run)
        record = read_record(policy.path)
    held = policy.path / MODEL
    return Source(policy, record, held if held.is_dir() else materialise(record.base, run))


def _compared_on(workshop: Workshop, release: Artifact, record: PolicyRecord) -> tuple[str, Artifact]:
    """The data of the release's own lineage that a merge is certified on."""
    name, kind = ("data", "labelled") if record.task in FORMS else ("prompts", "prompts")
    found = [workshop.store.find(kind, part["key"]) for part in _lineage(release) if part["kind"] == kind]
    there = sorted((one for one in found if one), key=lambda one: (one.path / "suite.json").is_file())
    if not there:
        raise DataError(
            f"release {release.key[:12]}: the {kind} that a merge would be compared on are not in the store; run its plan again"
        )
    return name, there[0]


def _alone(
    workshop: Workshop, release: Artifact, policy: Artifact, record: PolicyRecord, where: str
) -> tuple[Artifact, PolicyRecord]:
    """The policy that is one adapter on the plain base: the released one, or the one its merge was made from."""
    if not record.adapters:
        if not record.chain or record.chain[-1].stage != "merge":
            raise SpecError(f"{where}: its policy is a whole model, no adapter was trained; {_MERGED}")
        policy = _unmerged(workshop, release, policy, where)
        record = read_record(policy.path)
    whole = [link.stage for link in record.chain if link.adapter is None]
    if whole or (policy.path / MODEL).is_dir():
        raise SpecError(
            f"{where}: its adapter lies on a model that {' and '.join(whole) or 'an earlier stage'} changed, not on "
            f"{record.base.name}; {_MERGED}"
        )
    return policy, record


def _unmerged(workshop: Workshop, release: Artifact, policy: Artifact, where: str) -> Artifact:
    """What the merge of `policy` was made from, found by its digest.  Raises DataError where it is gone or altered."""
    digest = next(part["inputs"]["policy"] for part in _lineage(release) if part["key"] == policy.key)
    found = next((one for one in workshop.store.all() if one.kind == "policy" and one.digest == digest), None)
    damage = found.damage(deep=True) if found else "it is not in the store any more"
    if found is None or damage:
        raise DataError(f"{where}: the adapter that was merged: {damage}; run its plan again, or {_MERGED}")
    return found


def vllm_says(given: Source) -> VllmLora:
    """Whether vLLM would serve the adapter of `given`."""
    assert given.adapter
    return vllm_lora(given.adapter, _json(given.model / "config.json"))


def write(given: Source, release: Artifact, folder: Path) -> Exported:
    """Write `given` to `folder`, which must be new or empty; where that fails, nothing is left."""
    refuse_taken(folder)
    there = folder.is_dir()  # it may be a mounted volume or where the shell stands: it stays, and is filled
    where = folder.resolve() if there else folder.absolute().parent
    where.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".export-", dir=where))
    try:
        exported = _fill(given, release, draft / "out", folder)
        if there:
            for entry in sorted((draft / "out").iterdir(), key=lambda entry: entry.name == SUMS):
                entry.rename(where / entry.name)
        else:
            (draft / "out").rename(folder)
    finally:
        remove(draft)
    return exported


def refuse_taken(folder: Path) -> None:
    """Raise SpecError unless `folder` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder}: is there already and not empty; name a new folder")


def _fill(given: Source, release: Artifact, draft: Path, folder: Path) -> Exported:
    front, card = _card(release)
    base = str(front["base_model"])
    vllm = command = None
    if given.adapter:
        shutil.copytree(given.adapter, draft, copy_function=shutil.copyfile)
        for name in (*TOKENIZER_FILES, TEMPLATE, GENERATION):
            if (given.model / name).is_file() and not (draft / name).exists():
                shutil.copyfile(given.model / name, draft / name)
        config = {**given.peft(), "base_model_name_or_path": base}
        (draft / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if given.beside:
            shutil.copytree(given.model, draft / "base", copy_function=shutil.copyfile)
        vllm = vllm_says(given)
        quantised = given.record.quantization is not None
        if not vllm.problems:
            name = release_record(release)["name"]
            command = vllm.command(base, name, str(folder), quantised=quantised)
    else:
        shutil.copytree(given.model, draft, copy_function=shutil.copyfile)
    for pattern in _LICENSES:
        for file in given.model.glob(pattern):
            shutil.copyfile(file, draft / file.name)
    shown = command and command.replace(str(folder), "FOLDER")
    (draft / CARD_FILE).write_text(_adapted(front, card, given, release, base, shown), encoding="utf-8")
    files = {str(file.relative_to(draft)): file_digest(file) for file in sorted(draft.rglob("*")) if file.is_file()}
    _refuse_paths(draft, (given.policy.path.parents[1], given.model.parent))
    (draft / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in files.items()), encoding="utf-8")
    for file in draft.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    peft = given.peft().get("peft_type") not in _OWN_TYPES
    return Exported(folder, release, given.form, base, files, vllm, command, peft, _auto(given), given.beside)


def _refuse_paths(draft: Path, places: tuple[Path, ...]) -> None:
    """A guard: what leaves the machine names none of its folders."""
    for file in draft.rglob("*"):
        if file.suffix in (".json", ".md", ".jinja", ".txt"):
            text = file.read_text(encoding="utf-8", errors="replace")
            for place in places:
                if str(place) in text:
                    raise AlignError(f"{file.name}: holds the path {place}, so it is not exported")


def _card(release: Artifact) -> tuple[dict[str, Any], str]:
    """Front matter and text of the release's card."""
    import yaml

    _, front, text = (release.path / CARD_FILE).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def _adapted(front: dict[str, Any], text: str, given: Source, release: Artifact, base: str, vllm: str | None) -> str:
    """The card of what is in the folder: who loads it, and how."""
    import yaml
    from jinja2 import Environment, StrictUndefined

    record = given.record
    auto = _auto(given)
    reader = "AutoProcessor" if sees_images(record) else "AutoTokenizer"
    head = read_head(given.policy.path) if record.task in FORMS else None
    four_bits = given.form == "adapter" and record.quantization is not None
    names = [auto, reader, *(["AutoConfig"] if head and given.adapter else []), *(["BitsAndBytesConfig"] if four_bits else [])]
    peft_type = given.peft().get("peft_type")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    usage = environment.from_string(USAGE.read_text(encoding="utf-8")).render(
        form=given.form, merged=any(link.stage == "merge" for link in record.chain), base="base" if given.beside else base,
        names=sorted(names), auto=auto, reader=reader, four_bits=four_bits, soft=peft_type in _SOFT,
        own_type=peft_type if peft_type in _OWN_TYPES else None, head=AUTO_CLASSES[record.task] if head else None,
        key_mapping=dict(head.key_mapping) if head else {}, pipeline=front["pipeline_tag"], template=record.template, vllm=vllm,
        release=release,
    )  # fmt: skip
    front |= {"base_model": base, "base_model_relation": "adapter" if given.adapter else "finetune"}
    front["library_name"] = "peft" if given.adapter else "transformers"
    whole = re.sub(r"(?ms)^## How to use it\n.*?(?=^## Limits$)", lambda _: usage, text)
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{whole}"


def _auto(given: Source) -> str:
    seq2seq = given.record.task == "policy" and is_seq2seq(given.model)
    return "AutoModelForSeq2SeqLM" if seq2seq else auto_class(given.record)


def _lineage(release: Artifact) -> list[dict[str, Any]]:
    return release_record(release)["lineage"]


def _json(path: Path) -> Any:  # noqa: ANN401
    return json.loads(path.read_text(encoding="utf-8"))
