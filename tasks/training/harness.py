# pyright: basic
"""What a policy scores on a task of lm-eval: lm-eval asks and judges, our loader brings the model, and each document is a score.

No metric is taken that is not decided document by document: what cannot be paired cannot be gated.
"""

import json
import logging
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from evals import harness, suite
from tasks.core.contract import Inputs, Metrics, Progress, Run
from tasks.core.errors import DataError, SpecError
from tasks.core.files import write_json
from tasks.core.spec import to_json
from tasks.harness import DOCUMENTS, LOCAL, TASK_FILE, HarnessSpec
from tasks.tables import write_scores
from tasks.training.batches import rows_at_once, soft_prompt
from tasks.training.harness_data import built_in, kept_data, load_task
from tasks.training.models import Loaded, load

ROWS = {"cpu": 16, "cuda": 64}
"""requests at once"""
_SEED = 1234
"""of draws among examples and of tokens: lm-eval's own"""


def run(spec: HarnessSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `scores.parquet`, a row for each document and metric, and `suite.json`."""
    sys.dont_write_bytecode = True
    about = json.loads((inputs["task"] / TASK_FILE).read_text(encoding="utf-8"))
    name = about["task"]
    with kept_data(inputs["task"] / DOCUMENTS):
        task = load_task((inputs["task"] / LOCAL if about["local"] else built_in()) / about["file"])
    shots = _shots(name, task, spec.few_shot)
    hashes = [_hash(document) for document in task.eval_docs]
    items = _items(hashes)
    chosen = sorted(sorted(range(len(items)), key=lambda i: items[i])[: spec.limit])
    loaded = load(inputs["policy"], run, task="policy")
    with _progress(run):
        samples, found = _evaluated(loaded, task, chosen, spec, run)
    rows: list[dict[str, Any]] = []
    for sample in samples:
        rows += _rows(name, sample, about["metrics"], items[sample["doc_id"]], hashes[sample["doc_id"]])
    write_scores(out, rows)
    write_json(
        out / suite.MADE_OF,
        {
            "suite": harness.suite_of(name),
            "version": to_json(about["version"]),
            "text": about["config"],
            "prompts": about["documents"],
            "asked": {"limit": spec.limit, "few_shot": shots, "chat_template": spec.chat_template},
            "harness": about["harness"],
        },
    )
    return {**_means(rows), "documents": len(chosen), "few_shot": shots, "lm_eval": to_json(found)}


def _shots(name: str, task: Any, asked: int | None) -> int:  # noqa: ANN401  an lm_eval Task
    """Set how many examples are shown, by lm-eval's rules.  Raises SpecError for some where the task wants none."""
    own = task.get_config("num_fewshot")
    if own == 0 and asked:
        raise SpecError(f"lm-eval task {name}: it is asked without examples, as its file says; leave few_shot out")
    shots = (own or 0) if asked is None else asked
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=_SEED)
    return shots


def _hash(document: Any) -> str:  # noqa: ANN401  a row of any data set
    """What lm-eval's records call a document by."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))


def _items(hashes: Sequence[str]) -> list[str]:
    """A name for each document; one that is there again is numbered.

    >>> _items(["a", "b", "a"])
    ['a', 'b', 'a#2']
    """
    seen: Counter[str] = Counter()
    found: list[str] = []
    for name in hashes:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def _evaluated(
    loaded: Loaded, task: Any, chosen: list[int], spec: HarnessSpec, run: Run  # noqa: ANN401  an lm_eval Task
) -> tuple[list[dict[str, Any]], dict[str, float]]:  # fmt: skip
    """lm-eval's record of every document and filter, and the figures that it reports itself."""
    evaluate: Any = import_module("lm_eval.evaluator").evaluate
    wrapped: Any = import_module("lm_eval.models.huggingface").HFLM
    random.seed(_SEED)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    drawn = bool((task.config.generation_kwargs or {}).get("do_sample"))
    alone = drawn or soft_prompt(loaded.model)  # else draws, or padding behind a soft prompt, would depend on the batch
    rows = 1 if alone else rows_at_once(run, run.execution.micro_batch or ROWS[loaded.device.type])
    loaded.model.tie_weights = lambda *_, **__: None  # our loader has tied what is tied; a second time might undo an adapter
    told = logging.getLogger("lm_eval")
    told.setLevel(logging.ERROR)  # it warns of models that are given, not named
    model = wrapped(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=rows)
    told.setLevel(logging.WARNING)
    name = task.config.task
    found = evaluate(
        model, {"tasks": {name: task}}, samples={name: chosen}, bootstrap_iters=0, log_samples=True,
        apply_chat_template=spec.chat_template, fewshot_as_multiturn=True,
    )  # fmt: skip
    own = {
        key: float(value)
        for key, value in found["results"][name].items()
        if _is_number(value) and "," in key and "_stderr" not in key
    }
    return found["samples"][name], {key: value for key, value in own.items() if math.isfinite(value)}


def _rows(name: str, sample: Mapping[str, Any], metrics: Mapping[str, str], item: str, cluster: str) -> Iterator[dict[str, Any]]:
    """The scores in lm-eval's record of one document.  Raises DataError for a value that is no number."""
    for metric in (metric for metric in sample["metrics"] if metric in metrics):
        value, weight = sample[metric], 1.0
        if metrics[metric] != "mean":  # summed log-likelihood, nats, with the number of what it is of
            total, count = value if isinstance(value, tuple) else (value, 1)
            value, weight = -total / count, float(count)
        if not _is_number(value) or not math.isfinite(value):
            raise DataError(f"lm-eval task {name}: {metric} of a document is {value!r:.60}, not a number; did training diverge?")
        called = harness.called(name, metric, sample["filter"])
        yield {"subject": "", "metric": called, "item": item, "cluster": cluster, "value": float(value), "weight": weight}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["metric"].rpartition(".")[2], []).append(row["value"])
    return {name: sum(found) / len(found) for name, found in sorted(values.items())}


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, bool | int | float | np.number | np.bool_)


@contextmanager
def _progress(run: Run) -> Iterator[None]:
    """Have lm-eval's progress bars report to `run`."""
    from tqdm import tqdm

    class Bar(tqdm):
        """A bar that is not drawn."""

        def __init__(self, *given: Any, **named: Any) -> None:  # noqa: ANN401
            super().__init__(*given, **{**named, "disable": False, "file": _Nowhere()})

        def update(self, n: float | None = 1) -> bool | None:
            done = super().update(n)
            run.progress(Progress(int(self.n), int(self.total or 0), {}))
            return done

    silent = partial(tqdm, disable=True)
    with (
        patch("lm_eval.models.huggingface.tqdm", Bar),
        patch("lm_eval.api.task.tqdm", silent),
        patch("lm_eval.api.model.tqdm", silent),
    ):
        yield


class _Nowhere:
    """What is written here is gone."""

    def write(self, _: str) -> None:
        """Drop it."""

    def flush(self) -> None:
        """Nothing is held."""
