"""Tiny models, to hold what is estimated from a shape against what torch does."""

from pathlib import Path
from typing import NamedTuple

import pytest
import tiny

from tasks.core.contract import Execution, Run
from tasks.train import RewardSpec, SftSpec

QUIET = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern:RuntimeWarning"),
]
"""what libraries warn of while a model is set up, and nothing that we count"""


class TinyBase(NamedTuple):
    """A base that can be trained."""

    policy: Path
    folder: Path
    """of its weights"""
    models: Path
    """model cache"""


def write_base(root: Path, kind: str) -> TinyBase:
    """A base of three blocks below `root`."""
    source = tiny.write_model(root / kind, kind=kind, layers=3)
    return TinyBase(tiny.write_policy(root / f"{kind}-policy", root / "models", source, kind), source, root / "models")


def model_of(base: TinyBase, method: str, stage: str, work: Path):
    """The model as `stage` starts to train it, and the spec of `method`."""
    from tasks.training.adapters import start

    spec = (RewardSpec if stage == "reward" else SftSpec).model_validate({"method": tiny.METHOD[method]})
    return start(base.policy, spec, Run(work, base.models, Execution(device="cpu"))).model, spec.method


def method_of(name: str):
    """The spec of a method at a tiny size."""
    return SftSpec.model_validate({"method": tiny.METHOD[name]}).method
