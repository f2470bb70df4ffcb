"""Estimates: the peak of a stage is the sum of what it holds at once."""

from shaping import method_of

from tasks import estimate
from tasks.memory import Memory, Work
from tasks.shapes import of_parameters, trained


def test_full_training_in_float32_is_16_bytes_a_weight_before_activations():
    shape = of_parameters(1e9)
    need = estimate.training(shape, method_of("full"), "reward", Work(rows=1, longest=16))
    assert need.weights == 4 * shape.parameters
    assert need.gradients + need.optimiser == 12 * (shape.parameters + shape.hidden)
    assert need.total == sum(vars(need).values())
    assert need.logits == 0


def test_ppos_roles_share_one_base_under_adapters_and_have_four_without():
    shape, work = of_parameters(1e9), Work(device="cuda", rows=4, longest=512)
    lora = method_of("lora")
    shared = {role.name: role for role in estimate.ppo_roles(shape, lora, work, new=128)}
    apart = {role.name: role for role in estimate.ppo_roles(shape, method_of("full"), work, new=128)}
    assert list(shared) == list(apart) == ["policy", "value", "reward", "reference"]
    adapter, scalar = 4 * trained(shape, lora, "ppo"), 4 * trained(shape, lora, "reward")
    assert shared["reference"].memory == Memory(weights=adapter)
    assert shared["reward"].memory == Memory(weights=scalar)
    assert shared["value"].memory == Memory(weights=scalar, gradients=scalar, optimiser=2 * scalar)
    assert apart["reference"].memory.weights == apart["reward"].memory.weights == 2 * shape.parameters
    assert [role.shares_base for role in shared.values()] == [False, True, True, True]
    assert not any(role.shares_base for role in apart.values())
    assert sum(role.memory.weights for role in shared.values()) < 1.1 * 2 * shape.parameters
    assert sum(role.memory.weights for role in apart.values()) > 4 * 2 * shape.parameters


def test_ppo_needs_what_its_roles_need_together_and_a_reward_model_beside_in_full():
    shape, work, lora = of_parameters(1e9), Work(rows=4, longest=512), method_of("lora")
    roles = estimate.ppo_roles(shape, lora, work, new=128)
    assert estimate.ppo(shape, lora, work, new=128).total == sum(role.memory.total for role in roles)
    beside = {role.name: role for role in estimate.ppo_roles(shape, lora, work, new=128, judge=10**9)}
    assert (beside["reward"].memory, beside["reward"].shares_base) == (Memory(weights=10**9), False)
    assert [role.name for role in beside.values() if role.shares_base] == ["value", "reference"]


def test_the_larger_of_sampling_and_learning_counts():
    shape, work, lora = of_parameters(135e6), Work(rows=1, longest=256), method_of("lora")
    few, many = (estimate.ppo(shape, lora, work, new=200, written=rows) for rows in (1, 256))
    assert few.cache == 0
    assert few.logits == 3 * 4 * 200 * shape.vocabulary
    assert many.cache > 256 * 256 * shape.layers * 2 * shape.keys * 4
    assert many.logits == (4 + 3 * 8) * 256 * shape.vocabulary
    assert many.total > few.total
    grouped = [estimate.group(shape, lora, "grpo", work, new=200, written=rows) for rows in (1, 256)]
    assert [memory.cache for memory in grouped] == [0, many.cache]


def test_a_group_needs_its_reference_and_its_reward_model_beside_the_policy():
    shape, work, lora = of_parameters(135e6), Work(rows=4, longest=256), method_of("lora")
    alone = estimate.group(shape, lora, "rloo", work, new=64, written=4, pulls=False)
    assert alone == estimate.training(shape, lora, "rloo", work)
    whole = estimate.group(shape, lora, "rloo", work, new=64, written=4, judge=7)
    assert whole.total - alone.total == 7 + 4 * trained(shape, lora, "rloo")


def test_the_largest_micro_batch_divides_the_batch_and_fits():
    assert estimate.largest(lambda rows: 10 * rows, 45, 8, 12) == 4
    assert estimate.largest(lambda rows: 10 * rows, 45, 8, 10) == 2
    assert estimate.largest(lambda rows: 10 * rows, 9, 8, 12) is None
