# pyright: basic
"""Our PPO beside that of the last TRL that had one: peak memory and time of an iteration, in one run, as ratios.

Both train the same model on the same prompts with answers of one fixed length, the same minibatch, micro-batch, epochs, rank,
precision and threads.  They take turns, so that other work on the machine meets both.  The first iteration of each turn warms up.

python -m tests.bench.ppo [ours] [qlora]      both sides; `ours` leaves TRL out, `qlora` holds our base in 4 bits
"""

import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench-results" / "ppo"
TRL = "1.12.0"
"""the last release with a PPO trainer"""


@dataclass(frozen=True)
class Load:
    """The work of both sides."""

    rollout: int = 16
    """prompts of an iteration, one answer each, and one minibatch"""
    prompt: int = 64
    """tokens of a prompt"""
    answer: int = 32
    """tokens of an answer"""
    epochs: int = 2
    micro: int = 4
    rank: int = 16
    iterations: int = 3
    """of a turn, the first of which is not counted"""
    turns: int = 2
    threads: int = 2


@dataclass
class Side:
    """What was measured of one side."""

    seconds: list[float] = field(default_factory=list)
    """of each iteration but the first of a turn"""
    cpu_seconds: list[float] = field(default_factory=list)
    """of all its threads"""
    peaks: list[int] = field(default_factory=list)
    """most resident bytes of the process (VmHWM), a turn each"""

    def add(self, turn: Mapping[str, Any]) -> None:
        """Another turn."""
        self.seconds += turn["seconds"]
        self.cpu_seconds += turn["cpu_seconds"]
        self.peaks.append(turn["peak"])


class Lesson(NamedTuple):
    """What both sides learn from."""

    plan: Any
    base: Path
    """folder of the model's files"""
    models: Path
    inputs: dict[str, Path]
    """of our stage"""
    ids: list[list[int]]
    """the prompts' tokens"""


def prepare(plan_path: Path, load: Load, folder: Path, *overrides: str) -> Lesson:
    """Train SFT policy and reward model of the plan for a step, as far as they are not in `folder`, and write the prompts."""
    from flows.loading import load as load_plan
    from flows.pipeline import pipeline
    from tasks.policy import base_path, read_record

    cheap = ("max_steps=1", "global_batch=4", "max_length=128", "dropped_budget=1.0")
    few = [f"{stage}.{name}" for stage in ("sft", "reward") for name in cheap]
    asked = [
        "policy.learning_rate=1e-5", f"policy.rollout_batch={load.rollout}", f"policy.global_batch={load.rollout}",
        f"policy.ppo_epochs={load.epochs}", f"policy.iterations={load.iterations}", f"policy.max_new_tokens={load.answer}",
        f"policy.min_new_tokens={load.answer - 1}", f"policy.max_length={load.prompt + load.answer}",
        "policy.stop={kl: null, fall: null}", f"execution.micro_batch={load.micro}", f"execution.threads={load.threads}",
        "execution.parallel=1",
    ]  # fmt: skip
    ranks = [f"{stage}.method.rank={load.rank}" for stage in ("sft", "reward", "policy")]
    os.environ["ALIGN_STORE"] = str(folder / "store")
    plan = load_plan(plan_path, [*few, *asked, *ranks, *overrides])
    shop, built = plan.workshop(), {}

    class Done(Exception):
        pass

    def build(stage: Any, spec: Any, inputs: Any, *, name: str | None = None) -> Any:
        if {"sft", "reward"} <= set(built):
            raise Done
        built[stage.name], _ = shop.build(stage, spec, inputs)
        return built[stage.name]

    with contextlib.suppress(Done):
        pipeline(plan, build)
    base = base_path(shop.models, read_record(built["base"].path).base)
    ids = _prompts(base, load, folder / "prompts")
    clearance = folder / "clearance"
    clearance.mkdir(parents=True, exist_ok=True)
    (clearance / "clearance.json").write_text(json.dumps({"mean": 0.0, "std": 1.0}))
    inputs = {"policy": built["sft"].path, "reward_model": built["reward"].path}
    return Lesson(plan, base, shop.models, {**inputs, "prompts": folder / "prompts", "clearance": clearance}, ids)


def _prompts(base: Path, load: Load, out: Path) -> list[list[int]]:
    """Write prompts of exactly `load.prompt` tokens, template included; returns their tokens."""
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny
    from transformers import AutoTokenizer

    from tasks.training.data import Encoder

    encoder = Encoder(AutoTokenizer.from_pretrained(base))
    draw = random.Random(0)
    rows, found = [], []
    while len(found) < load.rollout:
        text = ""
        while len(ids := encoder.prompt(message := [{"role": "user", "content": text}])) < load.prompt:
            text += " " + draw.choice(tiny.WORDS)
        if len(ids) == load.prompt and ids not in found:
            rows.append({"id": f"{len(found):04}", "prompt": message})
            found.append(ids)
    tiny.write_rows(out, "prompts", rows)
    return found


def ours(lesson: Lesson, load: Load, work: Path) -> dict[str, Any]:
    """One turn of our stage, as the pipeline runs it."""
    from tasks.core.contract import Progress, Run
    from tasks.core.files import remove
    from tasks.ppo import PPO

    remove(work)
    (work / "out").mkdir(parents=True)
    ends: dict[int, tuple[float, float]] = {}

    def progress(seen: Progress) -> None:
        if "rollout" not in seen.values and seen.step and seen.step % load.epochs == 0:
            ends.setdefault(seen.step, (time.perf_counter(), _child_seconds()))

    said: list[str] = []
    run = Run(work, lesson.models, lesson.plan.execution, log=said.append, progress=progress)
    metrics = PPO.function(lesson.plan.policy, lesson.inputs, work / "out", run)
    if metrics["tokens"] != (due := load.iterations * load.rollout * load.answer):
        raise RuntimeError(f"{metrics['tokens']} tokens were written instead of {due}: the answers are not of one length")
    if metrics["micro_batch"] != load.micro:
        raise RuntimeError(f"micro-batch {metrics['micro_batch']} was used instead of {load.micro}: too little memory is free")
    times = [ends[step] for step in sorted(ends)]
    pairs = list(itertools.pairwise(times))
    seconds, busy = ([after[i] - before[i] for before, after in pairs] for i in (0, 1))
    return {"seconds": seconds, "cpu_seconds": busy, "peak": metrics["peak_rss_bytes"], "log": said}


def _child_seconds() -> float:
    """Processor time of the training child of this process; who it was forked from has done nothing since."""
    found: list[float] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and "tasks.training" in (stat.parent / "cmdline").read_text():
                found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        except OSError:
            continue
    if not found:
        raise RuntimeError("the training child is gone")
    return max(found)


def theirs(python: Path, lesson: Lesson, load: Load, work: Path) -> dict[str, Any]:
    """One turn of TRL's trainer in its own environment."""
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "settings.json"
    settings.write_text(json.dumps({**asdict(load), "model": str(lesson.base), "prompts": lesson.ids, "out": str(work / "out")}))
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(load.threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TRL_EXPERIMENTAL_SILENCE": "1", "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    script = str(Path(__file__).with_name("plain_ppo.py"))
    done = subprocess.run([str(python), script, str(settings)], env=environment, capture_output=True, text=True, cwd=work)
    if done.returncode:
        raise RuntimeError(f"TRL's PPO ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def trl_python(folder: Path) -> Path:
    """Python of an environment with TRL's last PPO, made if need be; ALIGN_BENCH_TRL names one that is there.

    Raises RuntimeError where packages cannot be installed.
    """
    if given := os.environ.get("ALIGN_BENCH_TRL"):
        return Path(given)
    python = folder / "bin" / "python"
    if (folder / ".ready").exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("trl==")]
    (folder / "constraints.txt").write_text("\n".join(pins))
    torch = next(line for line in pins if line.startswith("torch=="))
    wanted = [torch, f"trl=={TRL}", "peft", "transformers", "datasets", "accelerate"]
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        str(folder / "constraints.txt"),
    ]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"trl {TRL} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    (folder / ".ready").touch()
    return python


def bench(load: Load, *, qlora: bool = False, alone: bool = False, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure both sides in turns; what was measured, keyed by side.  `alone`: ours only."""
    plan = ROOT / "flows" / "plans" / ("ppo-qlora.yaml" if qlora else "ppo-lora.yaml")
    lesson = prepare(plan, load, FOLDER / ("qlora" if qlora else "lora"))
    sides: dict[str, Side] = {"ours": Side()}
    runs: dict[str, Callable[[], dict[str, Any]]] = {"ours": lambda: ours(lesson, load, FOLDER / "work")}
    if not alone:
        try:
            python = trl_python(FOLDER / f"trl-{TRL}")
        except (RuntimeError, OSError, subprocess.SubprocessError) as reason:
            say(f"PPO of TRL is left out: {reason}")
        else:
            runs["trl"] = lambda: theirs(python, lesson, load, FOLDER / "trl-work")
            sides["trl"] = Side()
    for _ in range(load.turns):
        for name, run in runs.items():
            turn = run()
            sides[name].add(turn)
            say(f"{name}: {', '.join(f'{s:.1f}' for s in turn['seconds'])} s an iteration, {turn['peak'] / 1e9:.2f} GB")
    found = {"load": asdict(load), "qlora": qlora, "version": TRL, **{name: asdict(side) for name, side in sides.items()}}
    (FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(found, indent=1))
    return found


def spread(numbers: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(numbers):.1f} ({min(numbers):.1f} to {max(numbers):.1f})"


def table(found: Mapping[str, Any]) -> str:
    """What was measured, as rows."""
    lines = ["| PPO | iteration, seconds | CPU-seconds | peak memory, GB |", "|---|---|---|---|"]
    for name in ("ours", "trl"):
        if side := found.get(name):
            peaks = [peak / 1e9 for peak in side["peaks"]]
            lines.append(f"| {name} | {spread(side['seconds'])} | {spread(side['cpu_seconds'])} | {max(peaks):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    fields = dict(text.split("=") for text in sys.argv[1:] if "=" in text)
    asked_load = Load(**{name: int(value) for name, value in fields.items()})
    measured = bench(asked_load, qlora="qlora" in sys.argv, alone="ours" in sys.argv)
    print(table(measured))  # noqa: T201
