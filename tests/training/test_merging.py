import json

import pytest
import tiny
import torch

from tasks.core.contract import Execution, Run
from tasks.core.errors import AlignError, DataError
from tasks.core.files import tree
from tasks.merge import MergeSpec
from tasks.policy import read_record
from tasks.preference import DpoSpec
from tasks.training import merge
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def logits(shop, policy, tmp_path):
    loaded = load(policy, Run(tmp_path, shop.models, Execution(device="cpu")))
    with torch.no_grad():
        return loaded.model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_merged_model_answers_as_the_policy_did(shop, train, sft_policies, tmp_path, method):
    out, metrics = train("merge", MergeSpec(), sft_policies(method))
    record = read_record(out)
    assert (record.adapters, record.quantization, record.chain[-1].stage) == ([], None, "merge")
    assert (logits(shop, out, tmp_path) - logits(shop, sft_policies(method), tmp_path)).abs().max() < 1e-5
    assert metrics == json.loads((out / "merge.json").read_text())
    assert metrics["top1_agreement"] == 1.0
    assert metrics["max_logit_distance"] < 1e-5 < metrics["adapter_effect"]
    assert metrics["prompts"] == 6
    again, _ = train("merge", MergeSpec(), sft_policies(method))
    assert [f.read_bytes() for f in tree(again)] == [f.read_bytes() for f in tree(out)]


def test_two_adapters_are_both_merged(shop, train, sft_policies, tmp_path):
    spec = DpoSpec.model_validate(
        {"method": {"name": "lora", "rank": 8}, "max_steps": 2, "global_batch": 8, "learning_rate": 1e-3}
    )
    policy, _ = train("dpo", spec, sft_policies("lora"))
    out, _ = train("merge", MergeSpec(), policy)
    assert (logits(shop, out, tmp_path) - logits(shop, policy, tmp_path)).abs().max() < 1e-5


def test_training_goes_on_from_a_merged_policy(train, sft_policies):
    merged, _ = train("merge", MergeSpec(), sft_policies("qlora"))
    for method in ("lora", "qlora"):
        spec = DpoSpec.model_validate({"method": tiny.METHOD[method], "max_steps": 1, "global_batch": 8})
        out, metrics = train("dpo", spec, merged)
        assert (metrics["start"], read_record(out).adapters) == ("fresh", ["0-dpo"])
        assert metrics["first_step_log_ratio"] < 1e-3
        assert (out / "model/model.safetensors").is_file()


def test_a_merge_that_changed_nothing_is_an_error(train, sft_policies, monkeypatch):
    real = merge.load

    def unmerged(policy, run, *, merged=False):
        loaded = real(policy, run)
        return loaded.replace(loaded.model.unload()) if merged else loaded

    monkeypatch.setattr(merge, "load", unmerged)
    with pytest.raises(AlignError, match="was not merged"):
        train("merge", MergeSpec(tolerance=100.0), sft_policies("lora"))
    with pytest.raises(AlignError, match=r"more than the tolerance 0\.001"):
        train("merge", MergeSpec(), sft_policies("lora"))


def test_a_policy_without_adapters_is_refused(train, shop):
    with pytest.raises(DataError, match="no adapter to merge"):
        train("merge", MergeSpec(), shop.policy)
