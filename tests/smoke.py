"""A whole plan on a tiny random model and a slice of the sample data, run by the real command line."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "datasets" / "samples"
ROWS = {"instructions": 60, "preferences": 60, "prompts": 8, "text": 8}

PLAN = """
name: smoke
model: {base: ./tiny}
data:
  instructions: {sources: [instructions.jsonl], heldout: 0.3}
  preferences: {sources: [preferences.jsonl], heldout: 0.4}
  prompts: {sources: [prompts.jsonl]}
  texts: {sources: [text.jsonl]}
sft: {max_steps: 4, global_batch: 4, max_length: 1024}
reward: {max_steps: 4, global_batch: 4, max_length: 1024}
policy: {max_steps: 4, global_batch: 4, max_length: 1024}
evaluation:
  answers: {max_new_tokens: 8}
gates:
  - {metric: text_perplexity_ratio, at_most: 3, against: base}
release: {channel: champion}
execution: {device: cpu, parallel: 2, threads: 1, checkpoint_every: 1}
"""


@dataclass(frozen=True)
class Smoke:
    """A folder with a plan, its data and model, a store of its own, and the server to record to."""

    folder: Path
    server: str | None

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def environment(self) -> dict[str, str]:
        here = {"ALIGN_STORE": str(self.store), "ALIGN_MODELS": str(self.folder / "models"), "HF_HUB_OFFLINE": "1"}
        rest = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ALIGN_"))}
        return rest | here | ({"PREFECT_API_URL": self.server} if self.server else {"PREFECT_HOME": str(self.folder / "prefect")})

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "flows.cli", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment | {"PYTHONPATH": str(ROOT)}, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def align(self, *arguments: str, code: int = 0) -> str:
        """Run `align`; what it printed, after its exit code was compared."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=540)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err
        return out + err

    def states(self, *overrides: str) -> dict[str, str]:
        """Stage -> built, missing or waits."""
        return self.states_of("plan.yaml", *overrides)

    def states_of(self, plan: str, *overrides: str) -> dict[str, str]:
        """The same of another plan in the folder."""
        return {row["stage"]: row["state"] for row in json.loads(self.align("plan", plan, "--json", *overrides))}

    def keys(self, *overrides: str) -> dict[str, str]:
        """Stage -> key of its artifact."""
        return {row["stage"]: row["key"] for row in json.loads(self.align("plan", "plan.yaml", "--json", *overrides))}


def ended(printed: str) -> dict[str, str]:
    """Stage -> built, cached or failed, from what `align run` printed."""
    lines = [line.split() for line in printed.splitlines() if line.startswith((" ✔", " =", " ✘"))]
    return {words[1]: words[2] for words in lines}


def write_smoke(folder: Path, server: str | None) -> Smoke:
    """Lay out the folder; nothing is run yet."""
    from tiny import write_model

    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "tiny", positions=1024)
    for name, count in ROWS.items():
        with (SAMPLES / f"{name}.jsonl").open(encoding="utf-8") as lines:
            (folder / f"{name}.jsonl").write_text("".join(itertools.islice(lines, count)), encoding="utf-8")
    (folder / "plan.yaml").write_text(PLAN)
    return Smoke(folder, server)
