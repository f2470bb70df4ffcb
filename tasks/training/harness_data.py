# pyright: basic
"""A task of lm-eval and its documents, as they are now: found by name, checked, and written where nothing moves them.

Code from the hub is never run: no data set with a script (`datasets` knows none any more) and no metric of `evaluate`'s hub.
Python files beside a user's own tasks are run, as lm-eval does.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from evals import harness
from evals.modules import nearest
from tasks.core.contract import Inputs, Metrics, Run
from tasks.core.errors import AlignError, DataError, MachineError, SpecError
from tasks.core.files import file_digest, tree, write_json
from tasks.core.spec import canonical, sha256, to_json
from tasks.harness import DOCUMENTS, LOCAL, TASK_FILE, HarnessTaskSpec


def run(spec: HarnessTaskSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `task.json`, `documents/` and, for a task of the user's own, `tasks/`."""
    sys.dont_write_bytecode = True  # a folder of tasks is an input, and stays as it is
    if local := inputs.get("tasks"):
        shutil.copytree(local, out / LOCAL, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    root, path = _found(spec.task, out / LOCAL if local else None, run)
    config = _config(spec.task, path, root)
    task = _made(spec.task, path, run)
    metrics, left_out = _metrics(spec.task, task)
    kept = _keep(spec.task, task, out / DOCUMENTS)
    own = {file.relative_to(root).as_posix(): file_digest(file) for file in tree(root)} if local and root == out / LOCAL else {}
    about = {
        "task": spec.task,
        "version": (task.config.metadata or {}).get("version"),
        "harness": spec.harness,
        "file": path.relative_to(root).as_posix(),
        "local": bool(own),
        "config": sha256(canonical({"config": config, "files": own})),
        "documents": sha256(canonical({file.name: file_digest(file) for file in tree(out / DOCUMENTS)})),
        "metrics": metrics,
        "left_out": left_out,
    }
    write_json(out / TASK_FILE, about)
    if local and not own:
        shutil.rmtree(out / LOCAL)  # the task is lm-eval's own
    return {"prompts": len(task.eval_docs), "metrics": list(metrics), "left_out": to_json(left_out), "splits": to_json(kept)}


# -- the task ----------------------------------------------------------------------------------------------------


def built_in() -> Path:
    """The folder of lm-eval's own tasks."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


def _found(name: str, local: Path | None, run: Run) -> tuple[Path, Path]:
    """The folder that the task `name` was found under, and its file.  Raises SpecError for what is no task."""
    from lm_eval.tasks import TaskManager

    known: list[str] = []
    for root in ([local] if local else []) + [built_in()]:
        if root != local:
            run.log("lm-eval: reading its list of tasks")
        manager = TaskManager(include_path=str(root), include_defaults=False)
        if entry := manager.task_index.get(name):
            if entry.kind.name in ("GROUP", "TAG"):
                held = sorted(entry.tags) or [_named(part) for part in (entry.cfg or {}).get("task", [])]
                some = ", ".join(held[:8]) + (f" and {len(held) - 8} more" if len(held) > 8 else "")
                raise SpecError(f"lm-eval task {name}: a group, which is measured task by task; it holds {some}")
            return root, Path(str(entry.yaml_path))
        known += manager.all_subtasks
    broken = _broken(local) if local else ""
    raise SpecError(f"lm-eval task {name}: no such task{nearest(name, known)}{broken}")


def _named(part: Any) -> str:  # noqa: ANN401  a part of a group as YAML has it
    return str(part.get("task") or part.get("group")) if isinstance(part, Mapping) else str(part)


def _broken(folder: Path) -> str:
    """The first file of `folder` that lm-eval passes over without a word, because it cannot be read."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for file in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:  # noqa: BLE001  whatever it is, it is why the task is not there
            return f"; {file.relative_to(folder)} cannot be read ({_first(error)})"
    return ""


def _config(name: str, path: Path, root: Path) -> dict[str, Any]:
    """What the task's file and those that it includes say, functions by name.  Raises SpecError for what is not done here."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path, resolve_func=False)
    if "class" in config:
        raise SpecError(f"lm-eval task {name}: it is a Python class with data of its own making, which cannot be kept")
    if config.get("unsafe_code"):
        raise SpecError(f"lm-eval task {name}: it runs what the model writes as code, which is never done")
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise SpecError(f"lm-eval task {name}: it shows images or plays sound, and only text is measured so")
    return json.loads(json.dumps(config, default=str).replace(f"{root}/", ""))


def load_task(path: Path) -> Any:  # noqa: ANN401  an lm_eval Task
    """The task in the file `path`."""
    from lm_eval.tasks import TaskManager

    [task] = TaskManager(include_defaults=False).load(str(path))["tasks"].values()
    return task


def _made(name: str, path: Path, run: Run) -> Any:  # noqa: ANN401  an lm_eval Task
    """The task with its data.  Raises DataError or MachineError for data that is not to be had."""
    with _local_data(path.parent, run.work), patch("evaluate.load", _refused):
        try:
            return load_task(path)
        except AlignError:
            raise
        except Exception as error:
            raise _classified(name, path, error) from error


@contextmanager
def _local_data(folder: Path, work: Path) -> Iterator[None]:
    """Have lm-eval find data files that are named relative to the `folder` of the task, and leave no copy in the user's cache."""
    import datasets

    usual = datasets.load_dataset

    def load_dataset(path: str, name: str | None = None, **given: Any) -> Any:  # noqa: ANN401
        local = {field: _absolute(given[field], folder) for field in ("data_files", "data_dir") if given.get(field)}
        if any(given[field] != found for field, found in local.items()):
            given |= {**local, "cache_dir": str(work / "datasets")}
        _absolute(path, folder)
        return usual(path, name, **given)

    with patch("datasets.load_dataset", load_dataset):
        yield


def _absolute(named: Any, folder: Path) -> Any:  # noqa: ANN401  a path, or a list or mapping of some
    """`named` under `folder` where that is there.  Raises SpecError for what is elsewhere on this machine."""
    if isinstance(named, Mapping):
        return {split: _absolute(files, folder) for split, files in named.items()}
    if isinstance(named, list):
        return [_absolute(file, folder) for file in named]
    if Path(str(named)).is_absolute():
        raise SpecError(f"lm-eval: {named} lies outside of the folder of the task, so nobody would see it change; put it there")
    return str(folder / named) if (folder / str(named)).exists() else named


def _refused(*given: Any, **_: Any) -> None:  # noqa: ANN401
    raise SpecError(f"metric {given[0]}: it would be code from the hub, which is never run")


def _classified(name: str, path: Path, error: Exception) -> AlignError:
    """What a failure to load a task is to people."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path, resolve_func=False)
    data, given = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    where = f"lm-eval task {name}"
    if given.get("data_files") and isinstance(error, FileNotFoundError):
        return DataError(f"{where}: {_first(error)}; data_files are relative to the folder of the task's file")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"OSError", "HfHubHTTPError", "HTTPError", "OfflineModeIsEnabled"}:
        return MachineError(
            f"{where}: its data set {data} is not in the cache and cannot be fetched ({_first(error):.160}); go online with "
            "HF_HUB_OFFLINE unset, or give a task of your own whose data_files are local"
        )
    return DataError(f"{where}: lm-eval cannot make it: {type(error).__name__}: {_first(error)}")


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


# -- what it measures, and on what -------------------------------------------------------------------------------


def _metrics(name: str, task: Any) -> tuple[dict[str, str], dict[str, str]]:  # noqa: ANN401
    """Metric that can be measured -> what its values are, and metric that cannot -> why.  Raises SpecError without one."""
    from lm_eval.api.metrics import mean

    found: dict[str, str] = {}
    left_out: dict[str, str] = {}
    own_results = task.config.process_results is not None
    for metric, aggregate in task.aggregation().items():
        up = task.higher_is_better().get(metric)
        known = harness.higher_is_better(metric)
        if task._metric_fn_list.get(metric) is None and not own_results:
            left_out[metric] = "it would be code from the hub, which is never run"
        elif metric in harness.PERPLEXITIES and not own_results:
            found[metric] = "negative log-likelihood"
        elif aggregate is not mean:
            left_out[metric] = f"it is no mean over documents ({getattr(aggregate, '__name__', aggregate)})"
        elif known is not None and up is not None and known != bool(up):
            left_out[metric] = f"{'higher' if up else 'lower'} is better here, unlike of what is called so"
        else:
            found[metric] = "mean"
    if not found:
        why = "; ".join(f"{metric}: {reason}" for metric, reason in left_out.items()) or "it names none"
        raise SpecError(f"lm-eval task {name}: no metric that can be compared document by document ({why})")
    return found, left_out


def _keep(name: str, task: Any, folder: Path) -> dict[str, int]:  # noqa: ANN401
    """Write the splits that documents and examples are from; split -> rows."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    config = task.config
    asked = config.test_split or config.validation_split
    shown = task.fewshot_cfg.split or config.training_split or config.validation_split or config.test_split
    folder.mkdir(parents=True)
    rows: dict[str, int] = {}
    for split in dict.fromkeys([asked, shown]):
        data = task.dataset[split]
        data = data if isinstance(data, Dataset) else Dataset.from_list(list(data))
        table: Any = data.with_format("arrow")[:]
        table = table.replace_schema_metadata(data.features.arrow_schema.metadata)
        if not len(table):
            raise DataError(f"lm-eval task {name}: its split {split} is empty")
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd", version="2.6", row_group_size=100_000)
        rows[split] = len(table)
    return rows


@contextmanager
def kept_data(folder: Path) -> Iterator[None]:
    """Have tasks of lm-eval take the tables of `folder` for their data, and nothing else."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    def download(task: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401
        task.dataset = {file.stem: Dataset(pq.read_table(file)) for file in tree(folder)}

    with patch("lm_eval.api.task.ConfigurableTask.download", download), patch("evaluate.load", _refused):
        yield
