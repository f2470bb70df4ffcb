# pyright: basic
"""Checkpoints of an interrupted training: the newest complete one, torn ones passed over.

Trainer writes a checkpoint file by file, so a kill can leave any part of it; resuming from a torn one fails or silently diverges.
"""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

TRAINED = "trained.safetensors"
"""every weight that is trained, by its name in the model"""


def newest_complete(folder: Path, processes: int) -> Path | None:
    """The complete checkpoint with the most steps in `folder`, or None."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_complete(path, processes):
            return path
    return None


def is_complete(path: Path, processes: int) -> bool:
    """Whether every file is there and whole: weights open, archives pass their checksums, the state names this step."""
    states = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
    try:
        step = json.loads((path / "trainer_state.json").read_text())["global_step"]
        archives = all(_archive_whole(path / name) for name in ("optimizer.pt", "scheduler.pt", *states))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False
    return step == int(path.name.rpartition("-")[2]) and archives and _weights_whole(path)


def _archive_whole(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _weights_whole(path: Path) -> bool:
    try:
        with safe_open(path / TRAINED, framework="numpy") as weights:
            return bool(weights.keys())
    except (OSError, SafetensorError):
        return False
