"""`policy.json`: the whole parent chain of a policy or reward model, and where its base lies.  Imports no torch.

A model is its base, plus the adapters in order; the record holds the digests of everything a loader must find unchanged.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.core.errors import DataError
from tasks.core.files import DigestCache, file_digest, write_json
from tasks.core.spec import canonical, sha256

RECORD = "policy.json"
MODEL = "model"
ADAPTERS = "adapters"
TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json")
"""how a vision-language model reads images"""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    *PROCESSOR_FILES,
)
"""what a tokenizer, or a processor, may consist of; the chat template is a file of its own and has a digest of its own"""

HeadKind = Literal["sequence_classification", "token_classification", "question_answering"]
"""a head for a task, see `tasks.heads`"""
Task = Literal["policy", "reward", "sequence_classification", "token_classification", "question_answering"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Base(_Record):
    """The model everything else is added to."""

    name: str
    """as the plan calls it; a hub name may hold a slash"""
    revision: str
    """`<scheme>:<hash>`, for example `sha256:b179...` of the source file, or `git:<commit>`"""
    files: dict[str, str]
    """file name -> sha256 of its bytes, for every file of the base in the model cache"""


class Link(_Record):
    """One training stage of the chain."""

    stage: str
    """sft, reward, dpo, merge, ..."""
    method: str
    """name of the method it trained with"""
    adapter: str | None = None
    """folder under `adapters/` that holds what it trained; None where it is in `model/`"""


class PolicyRecord(_Record):
    """What `policy.json` holds."""

    task: Task
    base: Base
    quantization: Literal["nf4"] | None = None
    """`nf4` where the base is held in 4 bits"""
    chain: tuple[Link, ...] = ()
    tokenizer: str
    """sha256 over the tokenizer files, see `tokenizer_digest`"""
    template: str | None
    """sha256 of the chat template's text; None where the base has none, which is enough for a task head"""

    @property
    def adapters(self) -> list[str]:
        """Adapter folders still to be applied, in order: those that came after the last stage without one."""
        names: list[str] = []
        for link in self.chain:
            if link.adapter is None:
                names = []
            elif link.adapter not in names:
                names.append(link.adapter)
        return names


def sees_images(record: PolicyRecord) -> bool:
    """Whether the base of a policy reads images beside text."""
    return any(name in record.base.files for name in PROCESSOR_FILES[:2])


def read_record(policy: Path) -> PolicyRecord:
    """The record of the policy or reward model in folder `policy`.  Raises DataError if it is not one."""
    path = policy / RECORD
    try:
        return PolicyRecord.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a policy's record ({reason}); was a policy given as input?") from error


def write_record(out: Path, record: PolicyRecord) -> None:
    """Write `record` as `out/policy.json`."""
    write_json(out / RECORD, record.model_dump(mode="json"))


def base_path(models: Path, base: Base) -> Path:
    """Where the model cache keeps `base`.

    >>> base_path(Path("m"), Base(name="org/tiny", revision="sha256:0123456789abcdef", files={})).as_posix()
    'm/org--tiny@0123456789ab'
    """
    return models / f"{base.name.replace('/', '--')}@{base.revision.rpartition(':')[2][:12]}"


def check_base(models: Path, base: Base) -> Path:
    """The folder of `base` in the model cache, every listed file there with the listed digest; else DataError."""
    folder = base_path(models, base)
    digests = DigestCache(models / ".digests.json")
    for name, wanted in base.files.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name}: base model {base.name} lacks this file; build the base again?")
        if (found := digests.digest(folder / name)) != wanted:
            raise DataError(
                f"{folder / name}: sha256 {found[:12]} instead of {wanted[:12]}, so this is not the base {base.name} that the "
                "policy was trained on; delete the folder and build the base again?"
            )
    return folder


def tokenizer_digest(folder: Path) -> str:
    """sha256 over names and bytes of the tokenizer files in `folder`.  Raises DataError if there are none."""
    files = {name: file_digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not files:
        raise DataError(f"{folder}: no tokenizer file here (looked for {', '.join(TOKENIZER_FILES)})")
    return sha256(canonical(files))


def find_template(folder: Path) -> str | None:
    """The chat template that the tokenizer in `folder` uses, None if it has none."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    config = folder / TOKENIZER_CONFIG
    for held in (config, folder / "chat_template.json"):
        text = json.loads(held.read_text(encoding="utf-8")).get("chat_template") if held.is_file() else None
        if isinstance(text, str) and text.strip():
            return text
    return None


def sees(folder: Path) -> bool:
    """Whether the model in `folder` reads images beside text."""
    path = folder / "config.json"
    return path.is_file() and "vision_config" in json.loads(path.read_text(encoding="utf-8"))


def is_seq2seq(folder: Path) -> bool:
    """Whether the model in `folder` reads with an encoder and writes with a decoder (T5, BART), which needs no chat template."""
    path = folder / "config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("is_encoder_decoder"))


def template_text(folder: Path) -> str:
    """The chat template that the tokenizer in `folder` uses.  Raises DataError if it has none."""
    text = find_template(folder)
    if text is None:
        raise DataError(f"{folder}: the tokenizer has no chat template; give the base a chat_template.jinja")
    return text


def template_digest(folder: Path) -> str:
    """sha256 of the chat template's text."""
    return sha256(template_text(folder))
