"""Suites: what a policy is asked and how that is judged, as versioned data in `evals/suites/<name>.yaml`.

The prompts themselves are a file of the user's.  Scores of a suite carry its version, the digests of its text and prompts, and
its settings; scores that differ in one of them are never compared.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from evals import modules
from tasks.core.errors import DataError, SpecError
from tasks.core.spec import Json, Spec, sha256

FOLDER = Path(__file__).with_name("suites")
MADE_OF = "suite.json"
"""in an artifact of a suite's scores: which suite they are of"""
Better = Literal["higher", "lower"]
JUDGED = "judge_win_rate"
"""the metric of a suite that a judge compares answers for"""
AGREED = "judge_agreement"
"""share of its comparisons in which the judge said the same of both orders"""
WINS = "judge_wins"
"""raw score: 1 where the candidate's answer is preferred to the subject's, 0.5 for a tie"""
CHOICES = ("accuracy", "accuracy_normalised", "gold_probability")
"""what the likelihoods of choices say, see tasks/training/choices.py"""
ANSWERED = ("answer_tokens", "finished")
"""raw scores of every suite that is answered"""
_OF_ANSWERS = ("finished_rate", "answer_length_ratio")
"""the rows of `evals.estimates.METRICS` that follow from them"""


class Settings(Spec):
    """How the prompts of a suite are answered."""

    max_new_tokens: PositiveInt = 512
    """an answer is cut here, stop token included"""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token each time"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """draw from the likeliest tokens that together have this probability"""
    seed: NonNegativeInt = 0
    """of the draws"""


class Asked(Spec):
    """What of a suite decides its prompts; what is measured on the answers is no part of it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """of the suite, and of its file"""
    version: PositiveInt
    """raised when the same data would be asked or judged otherwise"""
    form: Literal["prompts", "instructions", "choices"] = "prompts"
    """`prompts`: a text to answer, with a reference where there is one; `instructions`: verifiable ones, as IFEval has them;
    `choices`: several continuations, whose likelihoods are compared"""
    columns: dict[Literal["id", "group", "prompt", "reference", "instructions", "arguments", "choices", "gold"], str] = Field(
        default_factory=dict[Any, str]
    )
    """meaning -> column of the data; `a.0.b` is what lies within"""
    where: dict[str, tuple[str, ...]] = Field(default_factory=dict[str, tuple[str, ...]])
    """column -> values; rows with others are no part of the suite"""
    prompt: str = "{prompt}"
    """what is said, with `{prompt}` where the row's own text goes"""
    system: str | None = None
    """said before it"""
    asks: Literal["chat", "text"] = "chat"
    """choices: the likelihood of an answer under the chat template, or of a text that goes on"""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        wanted = {
            "prompts": {"prompt"},
            "instructions": {"prompt", "instructions", "arguments"},
            "choices": {"prompt", "choices", "gold"},
        }[self.form]
        if missing := sorted(wanted - self.columns.keys()):
            raise ValueError(f"form {self.form} needs columns.{missing[0]}")
        if extra := sorted(self.columns.keys() - wanted - {"id", "group"} - ({"reference"} if self.form == "prompts" else set())):
            raise ValueError(f"form {self.form} has no columns.{extra[0]}")
        if self.prompt.count("{prompt}") != 1:
            raise ValueError("prompt must say {prompt} once")
        if self.asks == "text" and (self.form != "choices" or self.system):
            raise ValueError("asks: text is for choices without a system text")
        return self


class Suite(Asked):
    """A suite: what is asked, and what is measured on the answers."""

    measures: str = Field(min_length=1)
    """what it is for, in a sentence"""
    origin: str = Field(min_length=1)
    """where its prompts come from, and the file that holds them"""
    license: str = Field(min_length=1)
    """of the prompts"""
    metrics: dict[str, Better] = Field(min_length=1)
    """metric module, or what choices or a judge give -> whether higher or lower is better"""
    answers: Settings | None = Settings()
    """how the prompts are answered; null for choices, which are not"""

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if (self.form == "choices") != (self.answers is None):
            raise ValueError("choices are not answered, and all else is: answers is null for form choices, and for no other")
        for name in self.metrics:
            self.check(name)
        return self

    def check(self, name: str) -> None:
        """Raise ValueError, with near names, unless `name` is a metric that this form can have."""
        able = CHOICES if self.form == "choices" else (*modules.names(), JUDGED, AGREED)
        if name not in able:
            raise ValueError(f"{name}: no metric for form {self.form}{modules.nearest(name, able)}")

    def may_measure(self) -> list[str]:
        """Every metric that scores of this suite can be made into: those it names, and those a plan may add."""
        able = CHOICES if self.form == "choices" else (*modules.names(), JUDGED, AGREED, *_OF_ANSWERS)
        return list(dict.fromkeys([*self.metrics, *able]))

    def asked(self) -> Asked:
        """What decides the prompts."""
        return Asked(**{name: getattr(self, name) for name in Asked.model_fields})


def names(folder: Path | None = None) -> list[str]:
    """All suites there are, sorted.

    >>> "ifeval" in names()
    True
    """
    return sorted(path.stem for path in (folder or FOLDER).glob("*.yaml"))


def text(name: str, folder: Path | None = None) -> str:
    """The text of suite `name`: part of the identity of what is measured with it.  Raises SpecError, with near names."""
    if name not in (known := names(folder)):
        raise SpecError(f"{name}: no such suite{modules.nearest(name, known)}; yours would be evals/suites/{name}.yaml")
    return ((folder or FOLDER) / f"{name}.yaml").read_text(encoding="utf-8")


def suite(name: str, folder: Path | None = None) -> Suite:
    """The suite `name`.  Raises SpecError for one that is not there or not right."""
    return _read(name, text(name, folder))


@cache
def _read(name: str, content: str) -> Suite:
    where = f"evals/suites/{name}.yaml"
    try:
        found = Suite.model_validate(yaml.safe_load(content))
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SpecError(f"{where}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from error
    if found.name != name:
        raise SpecError(f"{where}: it calls itself {found.name}; give file and suite one name")
    return found


def split(metric: str) -> tuple[str, str] | None:
    """`ifeval.prompt_strict` -> its suite and metric; None for a metric of no suite."""
    name, dot, inner = metric.partition(".")
    return (name, inner) if dot else None


def made_of(
    found: Suite, content: str, prompts: Path, settings: Mapping[str, Json] | None, judge: Mapping[str, Json] | None = None
) -> dict[str, Json]:
    """What scores say of themselves: the suite `found` of the text `content`, asked in the file `prompts` under `settings`."""
    from tasks.core.files import file_digest

    return {
        "suite": found.name,
        "version": found.version,
        "text": sha256(content),
        "prompts": file_digest(prompts),
        "settings": dict(settings) if settings is not None else None,
        **({"judge": dict(judge)} if judge is not None else {}),
    }


def refuse_mixed(inputs: Mapping[str, Path]) -> None:
    """Raise DataError where two of the scores artifacts `inputs` are of one suite and were not asked and judged alike."""
    seen: dict[tuple[str, str], tuple[str, Json]] = {}
    for name, folder in sorted(inputs.items()):
        path = folder / MADE_OF
        mine: dict[str, Json] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for field in (field for field in _MEANS if field in mine):
            other, theirs = seen.setdefault((str(mine["suite"]), field), (name, mine[field]))
            if mine[field] != theirs:
                raise DataError(
                    f"suite {mine['suite']}: {other} and {name} differ in {_MEANS[field]} "
                    f"({_shown(theirs)} and {_shown(mine[field])}), so they cannot be compared; measure both with one"
                )


_MEANS = {
    "version": "its version",
    "text": "its text",
    "prompts": "its prompts",
    "settings": "how answers were generated",
    "judge": "their judge",
    "asked": "how many prompts were asked and how",
    "harness": "their release of lm-eval",
}


def _shown(value: Json) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)
