# pyright: basic
"""A few real steps of a training stage on texts of a given length: what memory and speed really are.

The stage's own job runs in its own child on made-up texts, so that whatever the stage does, the probe does.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from tasks.core.contract import Run
from tasks.core.errors import SpecError
from tasks.core.launch import run_child
from tasks.policy import find_template
from tasks.train import TrainSpec
from tasks.workload import Reader

STEPS = 3
_WORD = " word"
_MINIMUM = 16
"""tokens of the shortest text that a probe can make"""


class Measured(NamedTuple):
    """What a probe found."""

    peak: int
    """bytes: of the child's resident memory on a CPU, of torch's allocator on a GPU"""
    tokens_per_second: float
    seconds: float
    """whole child, imports and loading included"""


def probe(spec: TrainSpec, policy: Path, folder: Path, run: Run, *, rows: int, longest: int) -> Measured:
    """Take `STEPS` steps of `spec` from `policy`, two micro-batches of `rows` each, with texts of up to `longest` tokens.

    `folder` holds the base's tokenizer and template; `run.work` is not used.  Raises SpecError for texts too short to probe.
    """
    import time

    if longest < _MINIMUM:
        raise SpecError(f"probe: texts of {longest} tokens are too short; use max_length {_MINIMUM} or more")
    processes = run.execution.processes
    batch = 2 * rows * processes
    short = {"max_steps": STEPS, "global_batch": batch, "max_length": longest, "dropped_budget": 1.0}
    asked = spec.model_copy(update=short)
    execution = run.execution.model_copy(update={"micro_batch": rows})
    with TemporaryDirectory(dir=run.work) as made:
        place = Path(made)
        _write(place / "data", _ROWS[spec.stage], Reader.of(folder), batch, longest)
        (place / "out").mkdir()
        here = replace(run, work=place, execution=execution)
        started = time.monotonic()
        metrics: dict[str, Any] = run_child(spec.stage, asked, {"policy": policy, "data": place / "data"}, place / "out", here)
        seconds = time.monotonic() - started
    peak = metrics.get("peak_gpu_bytes") or metrics["peak_rss_bytes"]
    return Measured(int(peak), float(metrics["tokens_per_second"]), seconds)


def _write(data: Path, make: Callable[[Reader, int, int], dict[str, Any]], reader: Reader, rows: int, longest: int) -> None:
    """Write the splits a stage reads; texts differ by a word, as real ones do, so that a batch has padding."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data.mkdir()
    made = [{"id": str(i), **make(reader, longest, i % 2)} for i in range(rows)]
    for name in ("train", "heldout", "texts"):
        pq.write_table(pa.Table.from_pylist(made if name != "heldout" else made[:1]), data / f"{name}.parquet")


def _words(reader: Reader, of: Callable[[str], list[dict[str, str]]], longest: int, less: int) -> str:
    """As many words as make the conversation `of(words)` at most `longest` tokens long, less `less`."""
    one = len(reader.ids(of(_WORD * 2))) - len(reader.ids(of(_WORD)))
    empty = len(reader.ids(of(_WORD))) - one
    count = max(1, (longest - empty) // max(1, one) - less)
    while count > 1 and len(reader.ids(of(_WORD * count))) > longest:
        count -= 1
    return _WORD * count


def _chat(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _instruction(reader: Reader, longest: int, less: int) -> dict[str, Any]:
    words = _words(reader, lambda text: _chat("word", text), longest, less)
    return {"messages": _chat("word", words)}


def _pair(reader: Reader, longest: int, less: int) -> dict[str, Any]:
    words = _words(reader, lambda text: _chat("word", "yes" + text), longest, less)
    return {"prompt": _chat("word", "")[:1], "chosen": "yes" + words, "rejected": "no" + words}


def _text(reader: Reader, longest: int, less: int) -> dict[str, Any]:
    return {"text": _WORD * (2 * longest)}


_ROWS: dict[str, Callable[[Reader, int, int], dict[str, Any]]] = {
    "pretrain": _text, "sft": _instruction, "reward": _pair, "dpo": _pair, "kto": _pair, "orpo": _pair,
}  # fmt: skip
"""stage -> a row of its data"""


def able(spec: object, folder: Path) -> bool:
    """Whether a stage with this spec can be probed: a training stage on a base with a chat template."""
    return isinstance(spec, TrainSpec) and spec.stage in _ROWS and find_template(folder) is not None
