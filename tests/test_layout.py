"""The layout holds: what lives where, what hides what, what is imported when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(code: str) -> set[str]:
    """Top-level packages in memory after running `code` in a fresh interpreter."""
    script = f"{code}\nimport sys\nprint(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_datasets_holds_no_python_and_does_not_hide_hugging_faces_package():
    assert list((ROOT / "datasets").rglob("*.py")) == []
    done = subprocess.run(
        [sys.executable, "-c", "import datasets; print(datasets.__version__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("5.")


def test_help_imports_neither_prefect_nor_torch_nor_pydantic():
    code = "import flows.cli\ntry:\n    flows.cli.cli(['--help'])\nexcept SystemExit:\n    pass"
    heavy = {"prefect", "torch", "transformers", "trl", "pydantic", "duckdb", "scipy", "numpy", "yaml"}
    assert imported(code) & heavy == set()


def test_looking_a_plan_up_imports_neither_prefect_nor_torch():
    heavy = {"prefect", "torch", "transformers", "trl", "peft", "datasets", "evaluate", "scipy", "pandas", "matplotlib"}
    assert imported("import flows.explain, flows.pipeline, flows.loading, flows.execute") & heavy == set()


@pytest.mark.parametrize("package", ["flows", "tasks", "evals"])
def test_every_module_says_what_it_is(package):
    silent = [file for file in (ROOT / package).rglob("*.py") if not ast.get_docstring(ast.parse(file.read_text()))]
    assert silent == []


def test_top_level_folders_are_the_fixed_ones():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    folders = {name.partition("/")[0] for name in listed if "/" in name}
    assert folders <= {"flows", "tasks", "datasets", "evals", "tests", "docs", "benchmarks", ".ci"}
