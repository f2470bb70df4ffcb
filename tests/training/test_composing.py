"""Adapters of one base put together with weights: the exact ways give the sum, all ways give a policy, the rest is refused."""

import json

import pytest
import tiny
import torch
from peft import PeftConfig

from tasks.compose import ADDS, EQUAL_RANKS, ComposeSpec, How
from tasks.core.contract import Execution, Run
from tasks.core.errors import AlignError, SpecError
from tasks.core.files import tree
from tasks.policy import read_record
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training import compose
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOKENS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def composed(shop, tmp_path_factory):
    def make(policies, **spec):
        out = tmp_path_factory.mktemp("composed")
        run = Run(tmp_path_factory.mktemp("work"), shop.models, Execution(device="cpu"))
        inputs = {f"part_{i}": policy for i, policy in enumerate(policies)}
        return out, compose.run(ComposeSpec.model_validate(spec), inputs, out, run)

    return make


@pytest.fixture(scope="module")
def other(train):
    """A second LoRA, of another rank, with other targets."""
    method = {"name": "lora", "rank": 2, "targets": ["q_proj", "down_proj"]}
    return train("sft", SftSpec.model_validate({"method": method, "max_steps": 3, "global_batch": 8, "learning_rate": 3e-2}))[0]


def weights(shop, policy, tmp_path):
    """The model with everything merged, in double precision."""
    model = load(policy, Run(tmp_path, shop.models, Execution(device="cpu")), merged=True).model
    return {name: value.detach().double() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("second", [*[name for name in ADDS if name not in ("qlora", "loftq")]])
def test_cat_is_the_weighted_sum_of_the_updates(shop, sft_policies, other, composed, tmp_path, second):
    out, metrics = composed([sft_policies(second), other], weights=[0.7, -0.3])
    base, one, two, made = (weights(shop, p, tmp_path) for p in (shop.policy, sft_policies(second), other, out))
    for name, value in base.items():
        wanted = value + 0.7 * (one[name] - value) - 0.3 * (two[name] - value)
        assert torch.allclose(made[name], wanted, atol=1e-6, rtol=0), name
    assert max(float((made[name] - base[name]).abs().max()) for name in base) > 1e-3
    assert metrics["max_logit_distance"] < 1e-5 < metrics["sum_effect"]
    assert metrics["top1_agreement"] == 1.0


def test_the_record_names_the_parts_and_the_folder_is_a_plain_lora(sft_policies, other, composed):
    out, metrics = composed([sft_policies("lora"), other], weights=[0.5, 0.5])
    record = read_record(out)
    assert [(link.stage, link.method, link.adapter) for link in record.chain] == [("compose", "lora", "0-compose")]
    written = json.loads((out / "compose.json").read_text())
    assert [(part["weight"], part["chain"]) for part in written["parts"]] == [(0.5, ["sft lora"]), (0.5, ["sft lora"])]
    assert written["rank"] == metrics["rank"] == 6
    config = PeftConfig.from_pretrained(str(out / "adapters/0-compose"))
    assert (config.r, config.lora_alpha, config.use_rslora) == (6, 6, False)
    again, _ = composed([sft_policies("lora"), other], weights=[0.5, 0.5])
    assert [f.read_bytes() for f in tree(again)] == [f.read_bytes() for f in tree(out)]


@pytest.mark.parametrize("how", How.__args__)
def test_every_way_gives_a_policy_that_loads_and_moved(shop, sft_policies, train, composed, tmp_path, how):
    spec = SftSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 3, "global_batch": 8, "seed": 1})
    second, _ = train("sft", spec)
    out, metrics = composed([sft_policies("lora"), second], weights=[0.6, 0.4], how=how)
    made, base = weights(shop, out, tmp_path), weights(shop, shop.policy, tmp_path)
    assert max(float((made[name] - base[name]).abs().max()) for name in base) > 0
    assert metrics["rank"] == (8 if how == "cat" else 4)
    if how == "svd":  # the best rank-4 approximation is near, but is not the sum
        assert 0 < metrics["max_logit_distance"] < metrics["sum_effect"]


def test_svd_of_full_rank_is_the_sum(sft_policies, other, composed):
    _, metrics = composed([sft_policies("lora"), other], weights=[1, 1], how="svd", rank=6)
    assert metrics["max_logit_distance"] < 1e-4


def test_dropping_is_seeded(sft_policies, other, composed):
    def bytes_of(seed):
        spec = {"weights": [1, 1], "how": "dare_linear_svd", "seed": seed}
        return (composed([sft_policies("lora"), other], **spec)[0] / "adapters/0-compose/adapter_model.safetensors").read_bytes()

    assert bytes_of(0) == bytes_of(0) != bytes_of(1)


def test_on_a_4_bit_base_and_training_goes_on_from_what_was_composed(train, sft_policies, composed):
    out, metrics = composed([sft_policies("qlora"), sft_policies("loftq")], weights=[0.5, 0.5])
    assert (read_record(out).quantization, read_record(out).chain[-1].method) == ("nf4", "qlora")
    assert metrics["max_logit_distance"] < 1e-4
    lora, _ = composed([sft_policies("lora"), sft_policies("rslora")], weights=[0.5, 0.5])
    method = json.loads((lora / "adapters/0-compose/method.json").read_text())
    trained, said = train("dpo", DpoSpec.model_validate({"method": method, "max_steps": 1, "global_batch": 8}), lora)
    assert (said["start"], read_record(trained).adapters) == ("continue", ["0-compose"])


def test_a_sum_that_is_not_the_sum_is_an_error(sft_policies, other, composed):
    with pytest.raises(AlignError, match="away from the sum of the separate updates"):
        composed([sft_policies("lora"), other], weights=[0.7, 0.3], tolerance=0)


@pytest.mark.parametrize(
    ("second", "how", "said"),
    [
        ("qlora", "cat", r"part 2 was trained on its base in 4 bits and part 1 was not"),
        ("ia3", "cat", r"part 2: trained with ia3, which cannot be added to others \(it is no low-rank update"),
        ("dora", "cat", r"part 2: trained with dora, .*its magnitudes belong to its own update"),
        ("full", "cat", r"part 2: it has no adapter of its own to compose"),
        *(
            ("pissa", how, rf"compose {how}: it adds the factors, so ranks must be equal, and part 1 has 4")
            for how in EQUAL_RANKS
        ),
    ],
)
def test_what_cannot_be_composed_is_refused_in_a_sentence(sft_policies, composed, second, how, said):
    with pytest.raises(SpecError, match=said):
        composed([sft_policies("lora"), sft_policies(second)], weights=[0.5, 0.5], how=how)


def test_other_bases_and_other_ground_are_refused(shop, train, sft_policies, composed, tmp_path):
    from tasks.policy import write_record

    stranger = tmp_path / "stranger"
    record = read_record(sft_policies("lora"))
    base = record.base.model_copy(update={"name": "stranger", "files": {"model.safetensors": "0" * 64}})
    stranger.mkdir()
    write_record(stranger, record.model_copy(update={"base": base}))
    with pytest.raises(SpecError, match=r"part 1 lies on tiny .* and part 2 on stranger .* only adapters of one base"):
        composed([sft_policies("lora"), stranger], weights=[0.5, 0.5])
    method = {"name": "lora", "rank": 8}
    spec = DpoSpec.model_validate({"method": method, "max_steps": 1, "global_batch": 8})
    above, _ = train("dpo", spec, sft_policies("lora"))
    with pytest.raises(SpecError, match="do not lie on the same weights"):
        composed([sft_policies("lora"), above], weights=[0.5, 0.5])
    reward, _ = train("reward", RewardSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 1, "global_batch": 8}))
    with pytest.raises(SpecError, match="part 2: a model for reward; only adapters of policies"):
        composed([sft_policies("lora"), reward], weights=[0.5, 0.5])


def test_adapters_above_a_common_one_keep_it_below(shop, train, sft_policies, composed, tmp_path):
    def above(seed):
        method = {"name": "lora", "rank": 8}
        fields = {"method": method, "max_steps": 2, "global_batch": 8, "learning_rate": 1e-2, "seed": seed}
        return train("dpo", DpoSpec.model_validate(fields), sft_policies("lora"))[0]

    one, two = above(0), above(1)
    out, _ = composed([one, two], weights=[2.0, -1.0])
    assert read_record(out).adapters == ["0-sft", "1-compose"]
    below, a, b, made = (weights(shop, p, tmp_path) for p in (sft_policies("lora"), one, two, out))
    for name, value in below.items():
        assert torch.allclose(made[name], value + 2 * (a[name] - value) - (b[name] - value), atol=1e-5, rtol=0), name


def test_specs_that_make_no_sense_are_refused():
    for fields, said in [
        ({"weights": [1.0, 0.0]}, "a weight of 0 leaves its part out"),
        ({"weights": [1.0, 1.0], "rank": 4}, "cat has no rank of its own"),
        ({"weights": [1.0]}, "at least 2"),
    ]:
        with pytest.raises(ValueError, match=said):
            ComposeSpec.model_validate(fields)
