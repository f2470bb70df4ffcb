"""`make bench`: how long things take, as seconds and as ratios measured in one run.  Not a test: nothing here is asserted.

python -m tests.bench.run [help] [nothing] [stage] [child] [training] [ppo]      all of them by default
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
RESULTS = ROOT / "bench-results"


def timed(command: list[str], environment: dict[str, str], runs: int = 5) -> float:
    """Median seconds of the whole process, after one run that does not count."""
    seconds: list[float] = []
    for i in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if i:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@contextlib.contextmanager
def server(environment: dict[str, str]) -> Iterator[str]:
    """A Prefect server as `align ui` runs it."""
    with tempfile.TemporaryDirectory() as folder:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port), "--store", folder]
        process = subprocess.Popen(
            command, env=environment | {"PREFECT_HOME": folder}, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        try:
            process.stdout.readline()  # "Prefect UI at ..."
            yield f"http://127.0.0.1:{port}/api"
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


def bench_help(report: Callable[..., None]) -> None:
    """`align --help` against an interpreter that does nothing."""
    align = timed([sys.executable, "-m", "flows.cli", "--help"], dict(os.environ), runs=9)
    bare = timed([sys.executable, "-c", "pass"], dict(os.environ), runs=9)
    report("`align --help`", align, aim=0.2, against=("python -c pass", bare))


def bench_nothing(report: Callable[..., None]) -> None:
    """A run with nothing to do: from the store alone, and recorded by a running server."""
    from smoke import write_smoke

    with tempfile.TemporaryDirectory() as folder:
        smoke = write_smoke(Path(folder) / "smoke", None)
        environment = smoke.environment | {"PYTHONPATH": str(ROOT)}
        with server(environment) as url:
            here = environment | {"PREFECT_API_URL": url}
            plan = str(smoke.folder / "plan.yaml")
            subprocess.run([sys.executable, "-m", "flows.cli", "run", plan], env=here, check=True)
            alone = timed([sys.executable, "-m", "flows.cli", "run", plan], environment)
            recorded = timed([sys.executable, "-m", "flows.cli", "run", plan, "--record"], here)
        report("`align run`, nothing to do", alone, aim=2.0, against=("the same, recorded", recorded))
        report("`align run --record`, nothing to do, server running", recorded, aim=4.0, against=("the store alone", alone))


def bench_stage(report: Callable[..., None]) -> None:
    """Flow and store around a stage that does next to nothing, against calling its function."""
    script = f"""
import json, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tempfile import mkdtemp
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from tasks.core.build import Workshop
from tasks.core.contract import Run, Stage
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.stage import Submit
class Word(Spec):
    text: str
def write(spec, inputs, out, run):
    (out / "word").write_text(spec.text)
    return {{}}
COUNT = 20
stage = Stage("write", 1, "texts", write)
folder = Path(mkdtemp())
started = time.perf_counter()
for i in range(COUNT):
    (folder / str(i)).mkdir()
    write(Word(text=str(i)), {{}}, folder / str(i), Run(folder, folder))
direct = time.perf_counter() - started
shop = Workshop(Store(folder / "store"), folder / "models")
@flow(task_runner=ThreadPoolTaskRunner(max_workers=8))
def body():
    build = Submit(shop, "bench")
    last = {{}}
    for i in range(COUNT):
        last = {{"last": build(stage, Word(text=str(i)), last, name=f"word-{{i}}")}}
    [future.result() for future in build.futures.values()]
    return time.perf_counter()
started = time.perf_counter()
ended = body()
print(json.dumps({{"direct": direct / COUNT, "flow": (ended - started) / COUNT}}))
"""
    with server(dict(os.environ)) as url:
        seconds: list[dict[str, float]] = []
        for _ in range(4):
            done = subprocess.run(
                [sys.executable, "-c", script],
                env=dict(os.environ) | {"PREFECT_API_URL": url},
                check=True,
                capture_output=True,
                text=True,
            )
            seconds.append(json.loads(done.stdout.splitlines()[-1]))
    direct = statistics.median(row["direct"] for row in seconds[1:])
    flow = statistics.median(row["flow"] for row in seconds[1:])
    report("overhead of flow and store per stage", flow - direct, aim=1.0, against=("the function alone", direct))


def bench_child(report: Callable[..., None]) -> None:
    """A child that starts and has nothing to do: forked from a warm process, against one that imports torch itself."""
    import tasks.core.warm as warm
    from tasks.core.contract import Execution, Run
    from tasks.core.errors import AlignError
    from tasks.core.launch import run_child
    from tasks.core.spec import Spec

    def seconds(runs: int = 5) -> float:
        found: list[float] = []
        for i in range(runs + 1):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                with contextlib.suppress(AlignError):  # no such job, which is said once everything is imported
                    run_child(
                        "nothing", Spec(), {}, Path(folder) / "out", Run(Path(folder), Path(folder), Execution(device="cpu"))
                    )
                if i:
                    found.append(time.perf_counter() - started)
        return statistics.median(found)

    forked = seconds()
    [origin] = warm._origins  # pyright: ignore[reportPrivateUsage]
    origin.end()
    cold = timed([sys.executable, "-c", "import tasks.training.sft"], dict(os.environ) | {"PYTHONPATH": str(ROOT)})
    report("start of a stage's child", forked, aim=1.0, against=("an import of torch, transformers, TRL and PEFT", cold))


def bench_training(report: Callable[..., None]) -> None:
    """The demo's training stages against one plain TRL script each: same data, same number of steps, whole processes."""
    from flows.loading import load
    from flows.pipeline import pipeline

    steps = int(os.environ.get("ALIGN_BENCH_STEPS", "8"))
    few = [f"{part}.max_steps={steps}" for part in ("sft", "reward", "policy")]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ALIGN_STORE"] = folder
        plan = load(ROOT / "flows" / "plans" / "demo.yaml", few)
        shop = plan.workshop()
        seconds: dict[str, float] = {}
        built: dict[str, object] = {}

        class Done(Exception):
            pass

        def build(stage, spec, inputs, *, name=None):
            if stage.name == "merge":
                raise Done
            started = time.perf_counter()
            artifact, _ = shop.build(stage, spec, inputs)
            seconds[stage.name] = time.perf_counter() - started
            built[stage.name] = artifact
            return artifact

        with contextlib.suppress(Done):
            pipeline(plan, build)
        model = next(shop.models.glob("smollm2-135m-instruct@*"))
        for stage, data in (("sft", "instructions"), ("reward", "preferences"), ("dpo", "preferences")):
            rows = next(artifact.path for artifact in shop.store.all() if artifact.kind == data) / "train.parquet"
            out = Path(folder) / f"plain-{stage}"
            adapter = str(Path(folder) / "plain-sft")
            spec = plan.policy if stage == "dpo" else getattr(plan, stage)
            command = [sys.executable, "-m", "tests.bench.plain", stage, str(model), str(rows), str(out), str(steps), adapter]
            command += [str(spec.global_batch), str(spec.learning_rate)]
            started = time.perf_counter()
            subprocess.run(command, env=dict(os.environ) | {"HF_HUB_OFFLINE": "1"}, check=True, cwd=ROOT, capture_output=True)
            plain = time.perf_counter() - started
            report(f"{stage} of the demo, {steps} steps", seconds[stage], aim=plain, against=("plain TRL script", plain))


def bench_ppo(report: Callable[..., None]) -> None:
    """An iteration of our PPO against one of the last TRL that had PPO, in turns; see `tests.bench.ppo`."""
    from tests.bench import ppo

    found = ppo.bench(ppo.Load(), say=lambda line: None)
    if "trl" not in found:
        return
    mine, other = found["ours"], found["trl"]
    against = f"PPO of TRL {found['version']}"
    for name, what, unit, aim in (
        ("seconds", "PPO, an iteration", "s", 0.7),
        ("cpu_seconds", "PPO, processor time of an iteration", "s", 0.7),
        ("peaks", "PPO, peak memory", "GB", 0.4),
    ):
        one, two = (statistics.median(side[name]) / (1e9 if unit == "GB" else 1) for side in (mine, other))
        report(what, one, aim=aim * two, against=(against, two), unit=unit)


BENCHES = {
    "help": bench_help,
    "nothing": bench_nothing,
    "stage": bench_stage,
    "child": bench_child,
    "training": bench_training,
    "ppo": bench_ppo,
}


def main(names: list[str]) -> None:
    """Run the named benches and print a table; the numbers go to bench-results/<time>.json."""
    rows: list[dict[str, object]] = []

    def report(what: str, value: float, *, aim: float, against: tuple[str, float], unit: str = "s") -> None:
        other, theirs = against
        rows.append({"what": what, "value": value, "unit": unit, "aim": aim, "against": other, "ratio": value / theirs})
        print(f"| {what} | {value:.2f} {unit} | {aim:.2f} {unit} | {value / theirs:.2f} x {other} |", flush=True)  # noqa: T201

    print("| what | measured | aim | ratio in this run |\n|---|---|---|---|", flush=True)  # noqa: T201
    for name in names or BENCHES:
        BENCHES[name](report)
    RESULTS.mkdir(exist_ok=True)
    found = {"cores": os.cpu_count(), "system": platform.platform(), "rows": rows}
    (RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
