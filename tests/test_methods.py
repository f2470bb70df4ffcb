import pytest
from pydantic import ValidationError

from tasks.algorithms import SPECS as POLICIES
from tasks.chain import check_merge, follow, same_shape
from tasks.core.contract import Identity
from tasks.core.errors import SpecError
from tasks.methods import METHODS, STAGES, Full, Lora, PrefixTuning, Qlora
from tasks.train import SFT, PretrainSpec, RewardSpec, SftSpec


def key(spec):
    return Identity.of(SFT, spec, {"policy": "a", "data": "b"}).key


@pytest.mark.parametrize("given", [{}, {"learning_rate": None}, {"learning_rate": 2e-4}])
def test_the_methods_default_rate_is_what_gets_hashed(given):
    spec = SftSpec.model_validate({"method": {"name": "lora"}, **given})
    assert spec.learning_rate == 2e-4
    assert key(spec) == key(SftSpec(learning_rate=2e-4))
    assert key(spec) != key(SftSpec(learning_rate=1e-4))


SPECS = {spec.stage: spec for spec in (PretrainSpec, SftSpec, RewardSpec, *POLICIES.values())}


def test_every_stage_but_that_of_task_heads_is_among_them():
    assert {*SPECS, "task"} == set(STAGES)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stage", SPECS)
def test_a_method_has_its_own_rate_in_a_stage_or_is_refused_there_with_the_reason(name, stage):
    row = METHODS[name]
    assert row.spec.model_fields["name"].default == name
    asked = {"method": {"name": name}}
    if stage in row.learning_rate:
        assert SPECS[stage].model_validate(asked).learning_rate == row.learning_rate[stage]
    else:
        first = next(other for other in METHODS if stage in METHODS[other].learning_rate)
        said = f"method {name} cannot train {stage}: {row.refuses[stage]}; use one of {first}, "
        with pytest.raises(ValidationError, match=said):
            SPECS[stage].model_validate(asked)


def test_every_row_says_what_it_cannot_do():
    for row in METHODS.values():
        assert set(row.learning_rate) | set(row.refuses) == set(STAGES)
        assert bool(row.keeps) == (row.merges_into is None)
        assert row.adapter or row.merges_into == "is the model"


@pytest.mark.parametrize("targets", [["lm_head"], []])
def test_targets_without_a_layer_to_train_or_with_the_head_are_refused(targets):
    with pytest.raises(ValidationError, match="head cannot be a target"):
        SftSpec.model_validate({"method": {"name": "lora", "targets": targets}})


def test_target_order_does_not_matter():
    one, two = (SftSpec.model_validate({"method": {"name": "lora", "targets": names}}) for names in (["q", "v"], ["v", "q", "q"]))
    assert key(one) == key(two)


def test_an_unknown_method_or_field_is_refused():
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        SftSpec.model_validate({"method": {"name": "lura"}})
    with pytest.raises(ValidationError, match="Extra inputs"):
        SftSpec.model_validate({"method": {"name": "full", "rank": 3}})


MERGE_FIRST = "merge the policy first"
ONLY_ITSELF = "only prefix_tuning of the same shape can go on from there"


@pytest.mark.parametrize(
    ("quantised", "last", "method", "same", "how"),
    [
        (False, None, Lora(), False, "fresh"),
        (False, "lora", Lora(), True, "continue"),
        (False, "lora", Lora(), False, "fresh"),
        (False, "lora", Full(), False, "fresh"),
        (False, "bitfit", PrefixTuning(), False, "fresh"),
        (False, "prefix_tuning", PrefixTuning(), True, "continue"),
        (False, "prefix_tuning", PrefixTuning(), False, ONLY_ITSELF),
        (False, "prefix_tuning", Lora(), False, ONLY_ITSELF),
        (False, None, Qlora(), False, "fresh"),
        (True, "qlora", Qlora(), True, "continue"),
        (True, "qlora", Qlora(), False, MERGE_FIRST),
        (True, "qlora", Full(), False, MERGE_FIRST),
        (False, "lora", Qlora(), False, MERGE_FIRST),
    ],
)
def test_a_stage_starts_exactly_at_the_policy_or_is_refused(quantised, last, method, same, how):
    if how in ("fresh", "continue"):
        assert follow(quantised, last, method, same=same) == how
    else:
        with pytest.raises(SpecError, match=how):
            follow(quantised, last, method, same=same)


def test_what_cannot_be_merged_is_refused_with_the_reason_and_what_to_use():
    check_merge(Lora(), Full())
    with pytest.raises(
        SpecError, match=r"prefix_tuning cannot be merged: its keys and values .* or use one of full, lora, qlora"
    ):
        check_merge(PrefixTuning())


def test_the_shape_of_a_method_leaves_out_how_it_starts_and_learns():
    assert same_shape(Lora(), Lora(dropout=0.1))
    assert same_shape(PrefixTuning(), PrefixTuning(hidden=64))
    assert not same_shape(PrefixTuning(), PrefixTuning(length=7))
    assert not same_shape(Lora(), Lora(rank=8))
    assert not same_shape(Lora(), Qlora())
