import pytest
from pydantic import ValidationError

from tasks.core.contract import Identity
from tasks.core.errors import SpecError
from tasks.methods import METHODS, Full, Lora, Qlora, follow
from tasks.train import SFT, DpoSpec, RewardSpec, SftSpec


def key(spec):
    return Identity.of(SFT, spec, {"policy": "a", "data": "b"}).key


@pytest.mark.parametrize("given", [{}, {"learning_rate": None}, {"learning_rate": 2e-4}])
def test_the_methods_default_rate_is_what_gets_hashed(given):
    spec = SftSpec.model_validate({"method": {"name": "lora"}, **given})
    assert spec.learning_rate == 2e-4
    assert key(spec) == key(SftSpec(learning_rate=2e-4))
    assert key(spec) != key(SftSpec(learning_rate=1e-4))


def test_every_method_has_a_rate_for_every_stage_it_supports():
    for name, row in METHODS.items():
        for spec, stage in ((SftSpec, "sft"), (RewardSpec, "reward"), (DpoSpec, "dpo")):
            assert spec.model_validate({"method": {"name": name}}).learning_rate == row.learning_rate[stage]
        assert row.spec.model_fields["name"].default == name


def test_an_unsupported_stage_is_refused_with_what_to_use_instead(monkeypatch):
    monkeypatch.setitem(METHODS["full"].learning_rate, "dpo", 1e-6)  # restored afterwards
    del METHODS["full"].learning_rate["dpo"]
    with pytest.raises(ValidationError, match="method full cannot train dpo; use one of lora, qlora"):
        DpoSpec(method=Full())


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


@pytest.mark.parametrize(
    ("quantised", "adapters", "method", "same", "how"),
    [
        (False, False, Lora(), False, "fresh"),
        (False, True, Lora(), True, "continue"),
        (False, True, Lora(), False, "fresh"),
        (False, True, Full(), False, "fresh"),
        (False, False, Qlora(), False, "fresh"),
        (True, True, Qlora(), True, "continue"),
        (True, True, Qlora(), False, None),
        (True, True, Full(), False, None),
        (False, True, Qlora(), False, None),
    ],
)
def test_a_stage_starts_exactly_at_the_policy_or_is_refused(quantised, adapters, method, same, how):
    if how:
        assert follow(quantised, adapters, method, same=same) == how
    else:
        with pytest.raises(SpecError, match="merge the policy first"):
            follow(quantised, adapters, method, same=same)
