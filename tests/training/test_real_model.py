"""The main methods on SmolLM2 itself: one step on real words, then what moved, and the same answers after a reload."""

import re

import pytest
import torch
from test_matrix import HARMLESS, TRAINS
from tiny import write_rows

from flows.plan_parts import models_folder
from tasks import smollm
from tasks.base import BaseSpec, build_base
from tasks.core.contract import Execution, Run
from tasks.train import SftSpec
from tasks.training import sft
from tasks.training.models import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    *(pytest.mark.filterwarnings(f"ignore:{said}") for said in HARMLESS),
]
MAIN = ["lora", "qlora", "dora", "pissa", "bottleneck", "prompt_tuning", "prefix_tuning", "ia3", "bitfit"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The base, and two rows to learn; the model cache is the user's own, so that the weights are written once."""
    root = tmp_path_factory.mktemp("real")
    policy = root / "base"
    policy.mkdir()
    models = models_folder()
    build_base(BaseSpec(model=smollm.NAME), {}, policy, Run(root, models))
    ask = [("What is the capital of France?", "Paris."), ("Name a primary colour.", "Red.")]
    rows = [
        {"id": str(i), "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for i, (q, a) in enumerate(ask)
    ]
    for split in ("train", "heldout"):
        write_rows(root / "data", split, rows)
    return policy, models, root / "data"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(100, 116)[None]).logits[:, -16:]


@pytest.mark.parametrize("method", MAIN)
def test_a_step_moves_what_the_method_trains_and_a_reload_answers_the_same(shop, tmp_path, monkeypatch, method):
    policy, models, data = shop
    seen = []
    real = sft.start

    def start(*given):
        begin = real(*given)
        frozen = {name: p.detach().clone() for name, p in begin.model.named_parameters() if p.requires_grad}
        sums = {name: float(p.double().sum()) for name, p in begin.model.named_parameters() if not p.requires_grad}
        seen.append((begin.model, frozen, sums))
        return begin

    monkeypatch.setattr(sft, "start", start)
    spec = SftSpec.model_validate({"method": {"name": method}, "max_steps": 1, "global_batch": 2, "warmup": 0, "max_length": 64})
    out = tmp_path / "out"
    out.mkdir()
    run = Run(tmp_path, models, Execution(device="cpu", micro_batch=2))
    metrics = sft.run(spec, {"policy": policy, "data": data}, out, run)
    model, trained, rest = seen[0]
    assert set(trained) == {name for name, _ in model.named_parameters() if re.search(TRAINS[method], name)}
    now = dict(model.named_parameters())
    assert any(not torch.equal(now[name], before) for name, before in trained.items())
    assert {name: float(now[name].double().sum()) for name in rest} == rest
    assert metrics["trainable_share"] < 0.1
    again = load(out, run).model
    assert (logits(again) - logits(model)).abs().max() < 2e-3  # PiSSA writes itself as a difference of twice the rank
