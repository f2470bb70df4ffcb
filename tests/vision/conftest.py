"""Tiny vision-language models of two families, pictures of colours, and a way to run a job on them in this process."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import tiny
import tiny_vision

from tasks.core.contract import Execution, Metrics, Run
from tasks.core.spec import Spec

KINDS = ["llava", "idefics3"]


@dataclass(frozen=True)
class Studio:
    """A model that sees, and artifacts with pictures."""

    models: Path
    source: Path
    policy: Path
    instructions: Path
    preferences: Path
    prompts: Path
    folder: Callable[[str], Path]

    def run(self, job: str, spec: Spec, work: Path | None = None, **given) -> tuple[Path, Metrics]:
        """Run a job in this process: its payload folder and metrics.  `given`: inputs, or fields of the execution."""
        inputs = {name: value for name, value in given.items() if isinstance(value, Path)}
        execution = Execution(device="cpu", **{name: value for name, value in given.items() if name not in inputs})
        out = self.folder("out")
        run = Run(work or self.folder("work"), self.models, execution)
        return out, import_module(f"tasks.training.{job}").run(spec, {"policy": self.policy, **inputs}, out, run)

    def at(self, **execution) -> Run:
        return Run(self.folder("work"), self.models, Execution(device="cpu", **execution))


@pytest.fixture(scope="session")
def studios(tmp_path_factory) -> Callable[[str], Studio]:
    """`studios("llava")`, made once."""
    made: dict[str, Studio] = {}

    def get(kind: str) -> Studio:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind)
            source = tiny_vision.write_vision_model(root / "source", kind)
            policy = tiny.write_policy(root / "policy", root / "models", source)
            data = tiny_vision.write_data(root)
            made[kind] = Studio(root / "models", source, policy, *data, tmp_path_factory.mktemp)
        return made[kind]

    return get


@pytest.fixture(params=KINDS)
def studio(request, studios) -> Studio:
    """Each family in turn."""
    return studios(request.param)


@pytest.fixture(scope="session")
def llava(studios) -> Studio:
    """One family, where a second would show nothing new."""
    return studios("llava")


@pytest.fixture(scope="session")
def taught(studios) -> Callable[[Studio], Path]:
    """A policy that learned by SFT to name colours; made once for each family."""
    from tasks.train import SftSpec

    fields = {"method": {"name": "lora", "rank": 8}, "epochs": 8, "global_batch": 12, "learning_rate": 5e-3}
    made: dict[Path, Path] = {}

    def get(studio: Studio) -> Path:
        if studio.source not in made:
            made[studio.source], _ = studio.run("sft", SftSpec.model_validate(fields), data=studio.instructions)
        return made[studio.source]

    return get
