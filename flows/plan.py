# pyright: basic
"""The plan: one closed YAML file, everything that is asked for.  Loading says in one sentence what is wrong with it."""

import difflib
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from evals import modules
from evals.estimates import metric
from evals.gates import Gate
from flows.compare_plan import ComparePlan
from flows.search_plan import SearchPlan
from tasks.base import BaseSpec, base_request
from tasks.chain import check_follow, check_merge, check_model, merges
from tasks.core.build import Workshop
from tasks.core.contract import Execution
from tasks.core.errors import SpecError
from tasks.core.spec import Json
from tasks.core.store import Store
from tasks.curate import InstructionsSpec, LabelledSpec, PreferencesSpec, PromptsSpec, TextsSpec
from tasks.generate import AnswersSpec
from tasks.judge import VerdictSpec
from tasks.measure import MetricsSpec, RewardsSpec, ScoresSpec
from tasks.merge import MergeSpec
from tasks.methods import METHODS as METHOD_ROWS
from tasks.reading.spec import SourceEntry
from tasks.release import ReleaseSpec
from tasks.smollm import NAME as EMBEDDED
from tasks.train import DpoSpec, PretrainSpec, RewardSpec, SftSpec

_REWARDS = ("reward", "chosen_reward", "rejected_reward")
_PAIRS = ("chosen_logp", "rejected_logp", "chosen_longer")


class Part(BaseModel):
    """A part of the plan that may hold locations beside specs: closed and frozen, never hashed as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@contextmanager
def _at(where: str) -> Generator[None]:
    """Say where in the plan something is refused, in the form that pydantic hears."""
    try:
        yield
    except SpecError as error:
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


S = TypeVar("S", InstructionsSpec, PreferencesSpec, PromptsSpec, TextsSpec, LabelledSpec)


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


class DataPlan(Part):
    """What is learned from, and what is held out to measure on."""

    instructions: Curated[InstructionsSpec]
    preferences: Curated[PreferencesSpec] | None = None
    """needed by `reward`, `policy` and whatever is measured on pairs"""
    prompts: Curated[PromptsSpec]
    texts: Curated[TextsSpec] | None = None
    """ordinary text, to see what is forgotten; needed by the metrics of text"""
    corpus: Curated[TextsSpec] | None = None
    """plain text to go on pre-training with"""


class EvaluationPlan(Part):
    """What is measured before the gates judge."""

    answers: AnswersSpec = AnswersSpec()
    scores: ScoresSpec = ScoresSpec()
    rewards: RewardsSpec = RewardsSpec()
    metrics: tuple[str, ...] = ()
    """modules of evals/metrics to report beside the gates; those that gates name are measured anyway"""

    @model_validator(mode="after")
    def _known(self) -> "EvaluationPlan":
        MetricsSpec(metrics=self.metrics)
        return self


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


class Plan(Part):
    """Everything that is asked for."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    model: ModelPlan
    data: DataPlan
    pretrain: PretrainSpec | None = None
    """before SFT, on `data.corpus`"""
    sft: SftSpec
    reward: RewardSpec | None = None
    """from the SFT policy; null, and `policy` too: SFT is all that is trained"""
    policy: DpoSpec | None = None
    """from the SFT policy; without it the SFT policy is the candidate, and its parent what SFT started from"""
    merge: MergeSpec | None = None
    """how the policy becomes one plain model; null: by the defaults, and what cannot be merged stays an adapter"""
    evaluation: EvaluationPlan = EvaluationPlan()
    compare: ComparePlan | None = None
    """what `align compare` compares"""
    gates: tuple[Gate, ...] = Field(min_length=1)
    seed: int = Field(default=0, ge=0)
    """of the bootstrap that judges"""
    release: ReleasePlan = ReleasePlan()
    schedule: SchedulePlan | None = None
    search: SearchPlan | None = None
    store: StorePlan = StorePlan()
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _chain(self) -> "Plan":
        """Refuse a method that cannot go on from the policy before it, before anything is trained."""
        if (self.pretrain is None) != (self.data.corpus is None):
            raise ValueError("pretrain needs data.corpus, and data.corpus is for pretrain; give both or neither")
        if (self.reward is None) != (self.policy is None):
            raise ValueError("reward and policy go together: the gates of one need the other; give both or neither")
        if self.reward and not self.data.preferences:
            raise ValueError("reward and policy need data.preferences; give some, or leave both out")
        steps = [(where, self.sft, after) for where, after in (("reward", self.reward), ("policy", self.policy)) if after]
        for where, before, after in [("sft", self.pretrain, self.sft), *steps] if self.pretrain else steps:
            with _at(where):
                check_follow(before.method, after.method, self.model.config())
        if self.merge:
            with _at("merge"):
                check_merge((self.policy or self.sft).method, config=self.model.config())
        return self

    @model_validator(mode="after")
    def _fits_the_model(self) -> "Plan":
        """Refuse stages and methods that the model does not take, where its kind is known."""
        stages = (("pretrain", self.pretrain), ("sft", self.sft), ("reward", self.reward), ("policy", self.policy))
        for where, spec in stages:
            if spec:
                with _at(where):
                    check_model(spec.stage, spec.method, self.model.config())
        return self

    @model_validator(mode="after")
    def _fit_the_plan(self) -> "Plan":
        """Refuse a method of `compare` or `search` that this model, or the policy before it, cannot take."""
        tried = [("compare", entry.method) for entry in (self.compare.methods if self.compare else ())]
        tried += [("search", method) for method in (self.search.methods if self.search else ())]
        for where, method in tried:
            with _at(where):
                check_model("sft", method, self.model.config())
                if self.pretrain:
                    check_follow(self.pretrain.method, method, self.model.config())
        for method in self.search.methods if self.search else ():
            with _at("search"):
                for spec in (self.reward, self.policy):  # a stage that goes on by the winner's method fits it already
                    if spec and spec.method.name != self.sft.method.name:
                        check_follow(method, spec.method, self.model.config())
                if self.merge and (self.policy is None or self.policy.method.name == self.sft.method.name):
                    check_merge(method, config=self.model.config())
        return self

    @model_validator(mode="after")
    def _measurable(self) -> "Plan":
        """Refuse a gate that nothing in the plan would measure."""
        missing = {
            **({} if self.reward else dict.fromkeys(_REWARDS, "a reward model, and the plan has no reward and policy")),
            **({} if self.data.preferences else dict.fromkeys(_PAIRS, "pairs, and the plan has no data.preferences")),
            **({} if self.data.texts else {"text_nll": "ordinary text, and the plan has no data.texts"}),
        }
        if (self.model.config() or {}).get("is_encoder_decoder"):
            missing["text_nll"] = "the likelihood of plain text, which an encoder-decoder model does not give"
        for gate in self.gates:
            for _, raw in metric(gate.metric, gate.against).wants(gate.comparator):
                if raw in missing:
                    raise ValueError(f"gate {gate.metric}: it needs {missing[raw]}; leave the gate out, or use another metric")
        if self.search and self.search.needs_preferences and not self.data.preferences:
            raise ValueError(f"search: metric {self.search.metric} needs {missing['chosen_logp']}; use answer_perplexity")
        return self

    @model_validator(mode="after")
    def _has_no_majority(self) -> "Plan":
        """Refuse a comparison that only labels allow."""
        for gate in self.gates:
            if gate.against == "majority":
                raise ValueError(f"gate {gate.metric}: answers have no majority label; use against: parent or base")
        return self

    @property
    def merges(self) -> bool:
        """Whether the policy is merged before it is measured: there is an adapter, and it can be."""
        return merges((self.policy or self.sft).method, self.model.config())

    def subjects(self) -> list[str]:
        """Whose answers and scores the gates need: the candidate, its parent (what it was trained from), and what gates name."""
        compared = {gate.comparator for gate in self.gates if gate.comparator}
        return [who for who in ("candidate", "parent", "base") if who in compared | {"candidate", "parent"}]

    def metrics(self) -> MetricsSpec:
        """The metric modules that the report and the gates need."""
        gated = (gate.metric for gate in self.gates if gate.metric in modules.names())
        return MetricsSpec(metrics=(*self.evaluation.metrics, *gated))

    def judge(self) -> VerdictSpec:
        """What the verdict is decided by."""
        return VerdictSpec(gates=self.gates, seed=self.seed)

    def card(self) -> ReleaseSpec:
        """What the release says of itself."""
        return ReleaseSpec(name=self.name, **self.release.model_dump(exclude={"channel"}))

    def workshop(self) -> Workshop:
        """The store and the model cache this plan builds with."""
        return Workshop(Store(self.store.root, self.store.remote), models_folder(), self.execution)


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


P = TypeVar("P", bound=Part)


def load(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan file; `overrides` are `policy.beta=0.2`.  Raises SpecError, in one sentence, for anything wrong with it."""
    return load_as(Plan, path, overrides)


def load_as(kind: type[P], path: Path, overrides: Sequence[str] = ()) -> P:
    """The same for a plan of another kind, which has a `store`."""
    raw = read(path, overrides)
    for field, command in _TELLING.items():
        if (field in raw) > (field in kind.model_fields):
            raise SpecError(f"{path}: this is a plan for {command}, as its field `{field}` says")
        if field in kind.model_fields and field not in raw:
            raise SpecError(f"{path}: this is no plan for {command}: it has no field `{field}`")
    relocated(raw, path.absolute().parent)
    store = raw.setdefault("store", {})
    if isinstance(store, dict):
        store["root"] = os.environ.get("ALIGN_STORE") or str(Path(store.get("root", "store")).absolute())
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        found = [_sentence(detail, kind) for detail in _causes(error.errors())]
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise SpecError(f"{path}: {'; '.join(found[:3])}{more}") from error


_TELLING = {"task": "`align run` and its like, of a task head", "tasks": "`align continual`"}
"""field that only one kind of plan has -> what takes such a plan"""


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a plan file as they are written, with `overrides` set.  Raises SpecError where there are none."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}; give the path of a plan such as flows/plans/demo.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: a plan is a mapping of fields, this is {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one field: `policy.beta=0.2`, `gates.0.at_least=0.6`; the value is read as YAML."""
    where, equals, text = override.partition("=")
    if not equals or not where:
        raise SpecError(f"--set {override}: write it as field=value, for example policy.beta=0.2")
    *parents, last = where.split(".")
    at: Any = raw
    try:
        for name in parents:
            at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
        at[int(last) if isinstance(at, list) else last] = yaml.safe_load(text)
    except (TypeError, ValueError, IndexError, AttributeError, yaml.YAMLError) as error:
        raise SpecError(f"--set {override}: the plan has no such place") from error


def relocated(raw: dict[str, Any], folder: Path) -> None:
    """Make the paths of the plan absolute: they are relative to the file that names them."""
    model = raw.get("model")
    if isinstance(model, dict) and isinstance(base := model.get("base"), str) and base.startswith((".", "/", "~")):
        local = (folder / Path(base).expanduser()).resolve()
        if not local.is_dir():
            raise SpecError(f"model.base: {local} is not a folder")
        model["base"] = str(local)
    _anchor(raw, folder)


def _anchor(at: object, folder: Path) -> None:
    """Make the paths of all `sources` below `at` absolute."""
    for part in at.values() if isinstance(at, dict) else at if isinstance(at, list) else ():
        _anchor(part, folder)
        if isinstance(part, dict) and "sources" in part:
            entries = part["sources"] if isinstance(part["sources"], list) else [part["sources"]]
            part["sources"] = [_anchored(entry, folder) for entry in entries]


def _anchored(entry: object, folder: Path) -> object:
    """One source with its paths made absolute; a bare text is a path."""
    fields = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        return fields
    named = {name: path for name in ("path", "images") if isinstance(path := fields.get(name), str)}
    return {**fields, **{name: str((folder / Path(path).expanduser()).resolve()) for name, path in named.items()}}


def _causes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without those that only follow from another: defaults of a wrong field, a list empty but for a wrong item."""

    def follows(one: ErrorDetails) -> bool:
        inside = any(other is not one and other["loc"][: len(one["loc"])] == one["loc"] for other in details)
        return one["type"] == "default_factory_not_called" or (one["type"] == "too_short" and inside)

    return [detail for detail in details if not follows(detail)]


def _sentence(detail: ErrorDetails, kind: type[Part]) -> str:
    """One pydantic error as people read it: `policy.beta: must be greater than 0, got -1`."""
    skipped = {"rules"}
    where = ".".join(str(part) for part in detail["loc"] if part not in skipped and not _is_tag(part))
    if detail["type"] == "extra_forbidden":
        known = _fields(kind, detail["loc"])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, 1)
        return f"{where}: no such field" + (f"; did you mean {near[0]}?" if near else "")
    if detail["type"] == "missing":
        return f"{where}: missing"
    said = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    got = detail["input"]
    shown = f", got {got!r}" if isinstance(got, int | float | str | None) else ""
    return f"{where}: {said}{shown}" if where else said


def _is_tag(part: int | str) -> bool:
    """Whether pydantic put the chosen member of a union into the location."""
    return part in METHOD_ROWS


def _fields(kind: type[Part], location: tuple[int | str, ...]) -> list[str]:
    """Names that would have been right where an unknown field stands."""
    schema: Any = kind.model_json_schema()
    definitions: Mapping[str, Any] = schema["$defs"]

    def resolve(at: Any) -> Any:  # noqa: ANN401
        options = [option for option in at.get("anyOf", [at]) if option.get("type") != "null"]
        at = options[0] if len(options) == 1 else at  # a part that may be left out
        while "$ref" in at:
            at = definitions[at["$ref"].rpartition("/")[2]]
        return at

    at = schema
    for part in location[:-1]:
        at = resolve(at)
        if isinstance(part, int) or part in at.get("required", []) or part in at.get("properties", {}):
            at = at.get("items", at) if isinstance(part, int) else at["properties"].get(part, at)
        for option in (*at.get("oneOf", ()), *at.get("anyOf", ())):
            if resolve(option).get("properties", {}).get("name", {}).get("const") == part:
                at = option
    return list(resolve(at).get("properties", {}))


def as_json(plan: Asked) -> dict[str, Json]:
    """The plan as plain JSON, for records."""
    return plan.model_dump(mode="json", by_alias=True)
