"""Helpers for the tests of curation: run a stage on a few lines or a file, and read what came out."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from tasks.core.contract import Execution, Run
from tasks.curate import (
    FeedbackSpec,
    InstructionsSpec,
    LabelledSpec,
    PreferencesSpec,
    PromptsSpec,
    TextsSpec,
    feedback,
    instructions,
    labelled,
    preferences,
    prompts,
    texts,
)

STAGES = {
    "instructions": (InstructionsSpec, instructions),
    "preferences": (PreferencesSpec, preferences),
    "feedback": (FeedbackSpec, feedback),
    "prompts": (PromptsSpec, prompts),
    "texts": (TextsSpec, texts),
    "labelled": (LabelledSpec, labelled),
}
SHARED = Path(__file__).parents[2] / "shared" / "data"


class Curated:
    """What a stage left: its metrics, its tables as lists of rows, its report."""

    def __init__(self, out: Path, metrics: dict) -> None:
        self.out, self.metrics = out, metrics

    def rows(self, name: str) -> list[dict]:
        return pq.read_table(self.out / f"{name}.parquet").to_pylist()

    @property
    def kept(self) -> list[dict]:
        tables = [
            self.rows(file.stem) for file in sorted(self.out.glob("*.parquet")) if file.stem not in ("quarantine", "dropped")
        ]
        return sorted((row for table in tables for row in table), key=lambda row: (row["source"], row["line"]))

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(row["line"], row["reason"]) for row in self.rows("quarantine")]

    @property
    def report(self) -> dict:
        return json.loads((self.out / "report.json").read_text())


def curate(
    tmp_path: Path,
    kind: str,
    *paths: Path,
    sources: list[dict] | None = None,
    threads: int = 1,
    images: Path | None = None,
    **fields,
) -> Curated:
    """Run one stage.  Each path is a source with the same place in `sources`; nothing fails for its share of bad rows.

    `images`: the folder that image paths of every source start from.
    """
    spec, function = STAGES[kind]
    out = tmp_path / f"out-{len(list(tmp_path.glob('out-*')))}"
    out.mkdir()
    listed = [{"name": path.name} | (sources[i] if sources else {}) for i, path in enumerate(paths)]
    inputs = {str(i): path for i, path in enumerate(paths)}
    inputs |= {f"{i}.images": images for i in range(len(paths)) if images}
    run = Run(tmp_path / "work", tmp_path, Execution(threads=threads))
    return Curated(out, function(spec(sources=listed, **{"quarantine_budget": 1.0} | fields), inputs, out, run))


def jsonl(path: Path, rows: list) -> Path:
    """Write rows as JSON Lines; a row that is text already is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def pair(prompt="Why?", chosen="Because.", rejected="No.", **more) -> dict:
    """A plain preference row."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}
