"""A policy that stays an adapter leaves as a folder that PEFT alone loads."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.inspect import lay_out
from tasks.core.contract import Execution, Run
from tasks.core.errors import SpecError
from tasks.policy import ADAPTERS, read_record, write_record
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 40)[None]).logits[:, -37:]


@pytest.mark.parametrize("method", ["lora", "p_tuning", "prefix_tuning"])
def test_an_unmerged_policy_loads_with_peft_alone(shop, sft_policies, tmp_path, monkeypatch, method):
    monkeypatch.setenv("ALIGN_MODELS", str(shop.models))
    policy = sft_policies(method)
    assert "PeftModel.from_pretrained" in lay_out(policy, tmp_path / "exported")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "exported/base"), tmp_path / "exported")
    ours = load(policy, Run(tmp_path, shop.models, Execution(device="cpu")))
    assert torch.equal(logits(model), logits(ours.model))
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").chat_template == ours.tokenizer.chat_template


def test_two_adapters_on_each_other_are_refused(shop, sft_policies, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_MODELS", str(shop.models))
    import shutil

    policy = tmp_path / "policy"
    shutil.copytree(sft_policies("lora"), policy)
    record = read_record(policy)
    (policy / ADAPTERS / "0-sft").rename(policy / ADAPTERS / "1-dpo")
    chain = (*record.chain, record.chain[0].model_copy(update={"stage": "dpo", "adapter": "1-dpo"}))
    (policy / "policy.json").unlink()
    write_record(policy, record.model_copy(update={"chain": chain}))
    with pytest.raises(SpecError, match="0-sft and 1-dpo lie on top of each other"):
        lay_out(policy, tmp_path / "exported")
