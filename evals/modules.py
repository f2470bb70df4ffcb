# pyright: basic
"""Metrics of your own: `evals/metrics/<name>/<name>.py`, a Hugging Face `evaluate` module, found by its folder's name.

`compute(predictions=..., references=...)` returns `{"<name>": mean, "values": [one number per prediction]}`.  A metric that is no
mean of items returns `"counts": {<raw metric>: [one number per prediction]}` instead, and a row of `evals.estimates.METRICS` says
what follows from their totals.  None in place of a number leaves an answer out: that may depend on the prompt and the reference
alone, never on the answer, for else two models would not be judged on the same items.  A module declares in its features what it
wants of predictions (answers), references and prompts (the last user turn).  One import a line: `evaluate` finds them by a regex.
"""

import math
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tasks.core.errors import DataError, SpecError

FOLDER = Path(__file__).with_name("metrics")
_OURS = re.compile(r"^from (evals\.\w+) import ", re.MULTILINE)
_OFFERED = ("predictions", "references", "prompts")


def names(folder: Path = FOLDER) -> list[str]:
    """All modules there are, sorted; nothing is imported.

    >>> "exact_match" in names()
    True
    """
    return sorted(path.parent.name for path in folder.glob("*/*.py") if path.stem == path.parent.name)


def check(name: str, folder: Path = FOLDER) -> None:
    """Raise SpecError, with the nearest names, unless `name` is a module."""
    if name not in (known := names(folder)):
        raise SpecError(f"{name}: no such metric module{nearest(name, known)}; yours would be evals/metrics/{name}/{name}.py")


def source(name: str, folder: Path = FOLDER) -> str:
    """The module's text: part of the identity of what is measured with it."""
    check(name, folder)
    return (folder / name / f"{name}.py").read_text(encoding="utf-8")


def sources(wanted: Iterable[str], folder: Path = FOLDER) -> dict[str, str]:
    """The texts of the modules `wanted`, and those of this package that they import: all of what decides their values.

    >>> sorted(sources(["prompt_strict"]))
    ['evals.instruction_checks', 'evals.instructions', 'evals.language', 'prompt_strict']
    """
    found = {name: source(name, folder) for name in wanted}
    waiting = list(found.values())
    while waiting:
        for name in _OURS.findall(waiting.pop()):
            if name not in found:
                found[name] = Path(__file__).with_name(f"{name.partition('.')[2]}.py").read_text(encoding="utf-8")
                waiting.append(found[name])
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    """Half a sentence about what `name` may have meant.

    >>> nearest("exact_mach", ["exact_match", "repetition"])
    ', did you mean exact_match?'
    """
    close = get_close_matches(name, known, n=3, cutoff=0.65)
    return f", did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(known) or 'none'}"


def values(
    name: str,
    predictions: Sequence[str],
    references: Sequence[str | None],
    prompts: Sequence[str],
    *,
    folder: Path = FOLDER,
) -> list[float | None]:
    """What module `name`, whose metric is a mean, says about each answer; see `columns`."""
    return columns(name, predictions, references, prompts, folder=folder)[name]


def columns(
    name: str,
    predictions: Sequence[str],
    references: Sequence[str | None],
    prompts: Sequence[str],
    *,
    folder: Path = FOLDER,
) -> dict[str, list[float | None]]:
    """Raw metric -> what module `name` says of it for each answer; None where it wants a reference and there is none, or says so.

    Raises DataError naming the module if it fails, gives another number of values, or one that is no finite number.
    """
    check(name, folder)
    import evaluate  # imports torch

    path = folder / name / f"{name}.py"
    try:
        module: Any = evaluate.load(str(path), keep_in_memory=True)
        wanted: list[str] = list(module._feature_names())
    except Exception as error:  # a user's code may raise anything
        raise DataError(f"{path}: the metric module cannot be loaded: {type(error).__name__}: {error}") from error
    if unknown := [feature for feature in wanted if feature not in _OFFERED]:
        raise DataError(f"{path}: the metric module wants {', '.join(unknown)}; it can have {', '.join(_OFFERED)}")
    there = [i for i, reference in enumerate(references) if reference is not None or "references" not in wanted]
    if not there:
        raise DataError(f"{name}: none of the {len(predictions)} prompts has {'a reference' if predictions else 'an answer'}")
    offered: dict[str, Sequence[str | None]] = dict(zip(_OFFERED, (predictions, references, prompts), strict=True))
    try:
        result = module.compute(**{feature: [offered[feature][i] for i in there] for feature in wanted})
    except Exception as error:
        raise DataError(f"{path}: the metric module failed: {type(error).__name__}: {error}") from error
    found: dict[str, list[float | None]] = {}
    for raw, numbers in _checked(path, name, result, len(there)).items():
        if all(value is None for value in numbers):
            raise DataError(f"{name}: it has nothing to say of any of the {len(there)} prompts; does it fit this data?")
        found[raw] = [None] * len(predictions)
        for i, value in zip(there, numbers, strict=True):
            found[raw][i] = value
    return found


def _checked(path: Path, name: str, result: Any, count: int) -> dict[str, list[float | None]]:  # noqa: ANN401  anything may come back
    if not isinstance(result, dict) or name not in result or not ("values" in result or isinstance(result.get("counts"), dict)):
        raise DataError(f'{path}: compute must return {{"{name}": mean, "values": [one per prediction]}}, not {result!r:.80}')
    given = {name: result["values"]} if "values" in result else result["counts"]
    return {str(raw): _numbers(path, list(numbers), count) for raw, numbers in given.items()}


def _numbers(path: Path, given: list[Any], count: int) -> list[float | None]:
    if len(given) != count:
        raise DataError(f"{path}: {len(given)} values for {count} predictions; return one per prediction, in their order")
    try:
        numbers = [None if value is None else float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: a value is not a number: {error}") from error
    if bad := [i for i, number in enumerate(numbers) if number is not None and not math.isfinite(number)]:
        raise DataError(f"{path}: value {bad[0]} is {numbers[bad[0]]}; every value must be a finite number")
    return numbers
