"""Task heads: classify a text, tag its tokens, or find an answer in a context.  Specs, stages, and what a head remembers.

Training and use read a text alike, so what decides that (kind, labels, lengths) lies beside the weights in `labels.json` and is
asked for once, in the training's spec.
"""

from functools import partial
from pathlib import Path
from typing import get_args

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from evals import modules
from tasks.base import on_base
from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.errors import DataError
from tasks.core.files import write_json
from tasks.core.spec import Spec, to_json
from tasks.generate import alone
from tasks.methods import learning_rate
from tasks.policy import HeadKind
from tasks.train import RowsSpec

KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
FORMS: dict[HeadKind, str] = {
    "sequence_classification": "classes",
    "token_classification": "tags",
    "question_answering": "questions",
}
"""kind -> the form of the labelled rows it learns from"""
MODULES: dict[HeadKind, tuple[str, ...]] = {
    "sequence_classification": ("accuracy", "macro_f1"),
    "token_classification": ("entity_f1",),
    "question_answering": ("exact_match", "token_f1"),
}
"""kind -> modules of evals/metrics that its predictions are measured with"""
GATED: dict[HeadKind, tuple[str, ...]] = {
    "sequence_classification": ("accuracy", "macro_f1"),
    "token_classification": ("entity_f1", "tag_accuracy"),
    "question_answering": ("exact_match", "token_f1"),
}
"""kind -> what a gate may bound"""
LABELS_FILE = "labels.json"
PREDICTIONS_FILE = "predictions.parquet"
MAJORITY = "majority"
"""the subject that always gives the most frequent label of the training data"""


class TaskSpec(RowsSpec):
    """Train a head for a task, and the model under it by the method, on labelled rows."""

    stage = "task"
    kind: HeadKind
    """what the head is for"""
    learning_rate: PositiveFloat = Field(default_factory=lambda data: learning_rate("task", data["method"]))
    """at the peak of the schedule; null: the method's default for task heads"""
    epochs: PositiveFloat = 3.0
    """passes over the data; the last batch is filled up from the next pass"""
    max_length: PositiveInt = 256
    """tokens read at once; a longer text of one label is cut, longer token rows and contexts are read in windows"""
    stride: NonNegativeInt = 32
    """tokens that neighbouring windows share"""
    max_answer_tokens: PositiveInt = 30
    """of a predicted answer"""


class PredictSpec(Spec):
    """Predict held-out rows and score each prediction."""

    limit: PositiveInt | None = None
    """predict the first so many rows by id; null: all"""


class Head(Spec):
    """What `labels.json` holds: all that decides how a text is read and an output understood."""

    kind: HeadKind
    labels: tuple[str, ...] = ()
    """sorted; the place of a label is its number"""
    majority: str | None = None
    """the most frequent label of the training data, the first of equals"""
    max_length: PositiveInt
    stride: NonNegativeInt
    max_answer_tokens: PositiveInt
    unanswerable: bool = False
    """whether the training data held questions without an answer, so that there may be none"""
    key_mapping: dict[str, str] = Field(default_factory=dict)
    """what `from_pretrained` must be told where the base's files name its body otherwise than a model with this head"""


def read_head(policy: Path) -> Head:
    """The head of the task model in folder `policy`.  Raises DataError if it has none."""
    path = policy / LABELS_FILE
    try:
        return Head.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path}: not the labels of a task head ({str(error).splitlines()[0]}); was one given as input?"
        ) from error


def write_head(out: Path, head: Head) -> None:
    """Write `head` as `out/labels.json`."""
    write_json(out / LABELS_FILE, to_json(head))


def predict(spec: PredictSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet` and `predictions.parquet` for the held-out rows.  Inputs: policy (a task model), data (labelled)."""
    return alone("predict", spec, inputs, out, run)


def _sources(_: Spec) -> dict[str, str]:
    return {name: modules.source(name) for name in sorted({name for names in MODULES.values() for name in names})}


TASK = Stage("task", 1, "policy", partial(on_base, "heads"), heavy=True)
"""inputs: policy, data (labelled)"""
PREDICT = Stage("predict", 1, "scores", predict, texts=_sources, heavy=True)
"""inputs: policy (a task model), data (labelled)"""
