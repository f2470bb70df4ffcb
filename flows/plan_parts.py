# pyright: basic
"""The parts that plans of every kind are made of: model, data, release, schedule and store.

A part may hold locations beside specs; `spec` and `files` take them apart, because where something lies is never hashed.
"""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from tasks.base import BaseSpec, base_request
from tasks.core.build import Workshop
from tasks.core.errors import SpecError
from tasks.core.spec import Json
from tasks.curate import FeedbackSpec, InstructionsSpec, LabelledSpec, PreferencesSpec, PromptsSpec, TextsSpec
from tasks.reading.spec import SourceEntry
from tasks.review import Approval
from tasks.smollm import NAME as EMBEDDED


class Part(BaseModel):
    """A part of the plan that may hold locations beside specs: closed and frozen, never hashed as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@contextmanager
def at(where: str) -> Generator[None]:
    """Say where in the plan something is refused, in the form that pydantic hears."""
    try:
        yield
    except (SpecError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


class ModelPlan(Part):
    """The model everything starts from."""

    base: str
    """`smollm2-135m-instruct`, a local folder, or a hub id such as `org/name`"""
    revision: str | None = None
    """40-hex commit of a hub id"""

    def spec(self) -> BaseSpec:
        """What decides the base model."""
        return base_request(self.base, self.revision, Path())[0]

    def files(self) -> dict[str, Path]:
        """The local folder, if that is what `base` names."""
        return base_request(self.base, self.revision, Path())[1]

    def config(self) -> dict[str, Any] | None:
        """The model's config.json where it is at hand before anything is downloaded."""
        if self.base == EMBEDDED:
            return {"model_type": "llama"}
        path = Path(self.base) / "config.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @model_validator(mode="after")
    def _pinned(self) -> "ModelPlan":
        self.spec()  # refuses a hub id without a commit
        return self


S = TypeVar("S", InstructionsSpec, PreferencesSpec, FeedbackSpec, PromptsSpec, TextsSpec, LabelledSpec)


class Curated(Part, Generic[S]):
    """Sources and the rules for their rows."""

    rules: S
    paths: dict[str, Path]
    """input name -> file or folder; the name is the place of the source in the list, `<place>.images` its folder of images"""

    @model_validator(mode="before")
    @classmethod
    def _split(cls, raw: object) -> object:
        """Take the location out of each source: it says where the rows are, not which."""
        if not isinstance(raw, Mapping) or "rules" in raw:
            return raw
        entries = [SourceEntry.model_validate(entry) for entry in raw.get("sources", ())]
        sources = [entry.identity().model_dump() for entry in entries]
        paths = {str(i): entry.path for i, entry in enumerate(entries) if entry.path}
        paths |= {f"{i}.images": entry.images for i, entry in enumerate(entries) if entry.images}
        return {"rules": {**raw, "sources": sources}, "paths": paths}

    def spec(self) -> S:
        """What decides the rows that are kept."""
        return self.rules

    def files(self) -> dict[str, Path]:
        """Where the rows are."""
        return self.paths


class ReleasePlan(Part):
    """Where a model that passed is announced."""

    channel: str = Field(default="champion", pattern=r"^[a-z0-9][a-z0-9._-]*$")
    summary: str = ""
    """what the model is for, for its card"""
    license: str | None = None
    """licence of the released model, as a Hugging Face identifier such as apache-2.0"""
    base_model: str | None = None
    """hub id of the base, for its card; default: the base's own name"""
    datasets: tuple[str, ...] = ()
    """hub ids of the data sets, for its card"""
    languages: tuple[str, ...] = ()
    """ISO 639 codes such as en, zh"""
    tags: tuple[str, ...] = ()
    """for the card, beside the ones that follow from how it was made"""
    limits: tuple[str, ...] = ()
    """known limits, a sentence each"""
    approval: Approval = "review"
    """whether a person must approve where the gates leave it open (`review`), or `always`"""
    review_days: PositiveFloat = 7
    """for a person to decide; later, the release counts as rejected"""


class SchedulePlan(Part):
    """When the plan runs by itself, once `align deploy` registered it."""

    cron: str
    timezone: str = "UTC"


class StorePlan(Part):
    """Where artifacts are kept."""

    root: Path = Path("store")
    """local store, relative to the working directory; ALIGN_STORE overrides it"""
    remote: str | None = None
    """any fsspec URL that several machines share, for example s3://bucket/align"""


class Asked(Protocol):
    """What any plan can be asked, whatever it builds."""

    @property
    def name(self) -> str:
        """Prefix of its runs and artifacts in the UI."""
        ...

    @property
    def store(self) -> StorePlan:
        """Where artifacts are kept."""
        ...

    def workshop(self) -> Workshop:
        """The store and the model cache it builds with."""
        ...

    def model_dump(self, *, mode: str, by_alias: bool) -> dict[str, Any]:
        """All of it as plain values."""
        ...


def models_folder() -> Path:
    """The model cache: ALIGN_MODELS, or a folder below the user's cache."""
    if named := os.environ.get("ALIGN_MODELS"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignflow" / "models"


def as_json(plan: Asked) -> dict[str, Json]:
    """The plan as plain JSON, for records."""
    return plan.model_dump(mode="json", by_alias=True)
