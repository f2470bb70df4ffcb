"""Many policies over one copy of the base: each answers as if it were alone, and the weights are there once."""

import pytest
import tiny
import torch

from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError
from tasks.preference import DpoSpec
from tasks.train import RewardSpec
from tasks.training.models import load
from tasks.training.shelf import Shelf, twin

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys"),
]
TOKENS = torch.arange(3, 40)[None]
APART = ["lora", "dora", "pissa", "ia3", "bitfit", "bottleneck", "layer_norm", "prompt_tuning", "prefix_tuning", "p_tuning"]
"""one of each kind of adapter: four types of PEFT's and two of ours"""


@pytest.fixture
def run(shop, tmp_path):
    return Run(tmp_path, shop.models, Execution(device="cpu"))


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def alone(policy, run):
    return logits(load(policy, run, task="policy").model)


def test_adapters_of_all_types_live_on_one_copy_of_the_base_and_answer_as_alone(shop, sft_policies, run):
    shelf = Shelf(run)
    for name in APART:
        shelf.add(name, sft_policies(name))
    assert [held.shares for held in shelf.held.values()] == [False] + [True] * (len(APART) - 1)
    assert [[link.method for link in held.loaded.record.chain] for held in shelf.held.values()] == [[name] for name in APART]
    base = {p.data_ptr() for p in shelf.plain().loaded.model.parameters()}
    for name in reversed(APART):  # after all the others were loaded
        model = shelf.held[name].loaded.model
        assert base <= {p.data_ptr() for p in model.parameters()}, name
        assert torch.equal(logits(model), alone(sft_policies(name), run)), name
    assert torch.equal(logits(shelf.plain().loaded.model), alone(shop.policy, run))
    assert len({float(logits(held.loaded.model).sum()) for held in shelf.held.values()}) == len(APART)


def test_a_whole_model_is_never_taken_for_the_bare_one(shop, sft_policies, run):
    shelf = Shelf(run)
    shelf.add("full", sft_policies("full"))
    with pytest.raises(DataError, match="the bare model is not in memory"):
        shelf.plain()
    shelf.add("lora", sft_policies("lora"))
    assert torch.equal(logits(shelf.plain().loaded.model), alone(shop.policy, run))


def test_several_unmerged_low_rank_adapters_add_up_to_what_merging_gives_and_share_the_base(train, sft_policies, run):
    shelf = Shelf(run)
    for below in ("lora", "dora", "rslora"):
        spec = DpoSpec.model_validate(
            {"method": {"name": "lora", "rank": 8}, "max_steps": 2, "global_batch": 8, "learning_rate": 1e-2}
        )
        policy, _ = train("dpo", spec, sft_policies(below))
        held = shelf.add(f"dpo on {below}", policy)
        assert (logits(held.loaded.model) - alone(policy, run)).abs().max() < 1e-5
        assert (logits(held.loaded.model) - alone(sft_policies(below), run)).abs().max() > 1e-3
    assert [held.shares for held in shelf.held.values()] == [False, True, True]


def test_what_cannot_be_added_up_gets_weights_of_its_own(train, sft_policies, run):
    spec = DpoSpec.model_validate({"method": {"name": "dora", "rank": 4}, "max_steps": 2, "global_batch": 8})
    policy, _ = train("dpo", spec, sft_policies("lora"))
    shelf = Shelf(run)
    shelf.add("first", sft_policies("lora"))
    held = shelf.add("second", policy)
    assert not held.shares
    assert torch.equal(logits(held.loaded.model), alone(policy, run))


def test_four_bit_bases_are_shared_too_and_never_with_unquantised_ones(sft_policies, run):
    shelf = Shelf(run)
    names = ["lora", "qlora", "loftq"]
    assert [shelf.add(name, sft_policies(name)).shares for name in names] == [False, False, True]
    for name in names:
        assert torch.equal(logits(shelf.held[name].loaded.model), alone(sft_policies(name), run)), name


def test_a_whole_model_stands_for_itself_and_reward_models_and_second_names_are_refused(shop, train, sft_policies, run):
    shelf = Shelf(run)
    shelf.add("base", shop.policy)
    assert not shelf.add("full", sft_policies("full")).shares
    assert torch.equal(logits(shelf.held["full"].loaded.model), alone(sft_policies("full"), run))
    with pytest.raises(DataError, match="loaded already"):
        shelf.add("full", shop.policy)
    reward, _ = train("reward", RewardSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 1, "global_batch": 8}))
    with pytest.raises(DataError, match="a reward model, which gives no answers"):
        shelf.add("reward", reward)


def test_wrapping_a_twin_leaves_the_model_alone(shop, run):
    model = load(shop.policy, run).model
    names = [name for name, _ in model.named_modules()]
    other = twin(model)
    other.model.layers[0].self_attn.q_proj = torch.nn.Identity()
    assert [name for name, _ in model.named_modules()] == names
    assert other.get_output_embeddings().weight is model.get_input_embeddings().weight  # still tied, and the same tensor
