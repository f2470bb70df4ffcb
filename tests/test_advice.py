"""Advice: each rule flips an order at its own border, constraints refuse with the reason, own results replace published ones."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from tasks.advice import advise, bytes_of, fragment, own_results, starting, weights_of
from tasks.advice_rules import CONSTRAINTS, RULES, Need
from tasks.core.errors import DataError
from tasks.memory import weights
from tasks.methods import METHODS
from tasks.shapes import Shape, of_parameters

SEVEN = of_parameters(7e9)
PLENTY = Need(shape=SEVEN, memory=10**13, rows=10_000)
"""no rule applies but that there is memory to spare"""

FLIPS = {
    "short of memory": ("qlora", "lora", {"memory": int(1.4 * weights(SEVEN, device="cuda"))}),
    "memory to spare": ("bottleneck", "qlora", {}),
    "little data": ("ia3", "full", {"rows": 300}),
    "much data": ("full", "lora", {"rows": 100_000}),
    "very large model": ("prompt_tuning", "dora", {"shape": of_parameters(2e10)}),
    "small model": ("bitfit", "p_tuning", {"shape": of_parameters(5e8)}),
    "must not forget": ("lora", "rslora", {"forgetting": "low"}),
    "many adapters": ("lora", "rslora", {"adapters": "many"}),
    "classification": ("bottleneck", "lora", {"task": "classification"}),
    "text is written": ("prefix_tuning", "ia3", {"task": "generation"}),
    "preferences": ("lora", "rslora", {"task": "preferences"}),
    "low rank suffices": ("dora", "rslora", {"rows": 4000}),
    "few steps": ("pissa", "lora", {"rows": 900}),
}
"""rule -> better, worse, and what makes it apply; without the rule it is the other way round"""


def order(need: Need) -> list[str]:
    return [one.method.name for one in advise(need)]


def test_every_rule_has_a_flip_and_names_methods_that_are_there():
    assert FLIPS.keys() == {rule.name for rule in RULES}
    assert all(rule.points.keys() <= METHODS.keys() for rule in RULES)


@pytest.mark.parametrize("name", FLIPS)
def test_a_rule_flips_an_order_where_it_applies(name, monkeypatch):
    better, worse, change = FLIPS[name]
    need = replace(PLENTY, **change)
    rule = next(rule for rule in RULES if rule.name == name)
    assert rule.when.holds(need)
    with_rule = {one.method.name: one.score for one in advise(need)}
    monkeypatch.setattr("tasks.advice.RULES", tuple(other for other in RULES if other.name != name))
    without = {one.method.name: one.score for one in advise(need)}
    assert with_rule[better] > with_rule[worse]
    assert without[better] <= without[worse]


def test_no_rule_applies_to_both_sides_of_its_border():
    for name, (_, _, change) in FLIPS.items():
        rule = next(rule for rule in RULES if rule.name == name)
        other = replace(PLENTY, memory=int(1.4 * weights(SEVEN, device="cuda"))) if name == "memory to spare" else PLENTY
        assert rule.when.holds(replace(PLENTY, **change))
        assert not rule.when.holds(other)


def test_every_reason_says_what_it_rests_on_and_the_score_is_their_sum():
    for one in advise(replace(PLENTY, rows=300, forgetting="low")):
        assert all(reason.rests_on and reason.said for reason in one.reasons)
        assert one.score == pytest.approx(sum(reason.points for reason in one.reasons))


@pytest.mark.parametrize(
    ("change", "method", "said"),
    [
        ({"latency": "none"}, "prefix_tuning", "adds time in use and cannot be merged"),
        ({"adapters": "many"}, "full", "leaves a whole model, not an adapter to switch"),
        ({"task": "preferences"}, "head", "cannot train preferences: it trains nothing but a new head"),
        ({}, "moe_router", "the model is no mixture of experts"),
        ({"memory": bytes_of("24GB")}, "full", "needs about .* GB for one row of 1024 tokens, 24.0 GB are there"),
    ],
)
def test_what_cannot_meet_the_need_comes_last_and_says_why(change, method, said):
    ranked = advise(replace(PLENTY, **change))
    one = next(one for one in ranked if one.method.name == method)
    assert any(re.match(said, reason) for reason in one.refused)
    states = [bool(other.refused) for other in ranked]
    assert states == sorted(states)
    assert not next(other for other in advise(PLENTY) if other.method.name == method).refused or change in (
        {},
        {"task": "preferences"},
    )


def test_constraints_are_named_for_the_documentation():
    assert len({constraint.name for constraint in CONSTRAINTS}) == len(CONSTRAINTS) == 4


def test_24_gb_hold_a_7b_model_with_lora_and_not_full_and_a_33b_model_in_4_bits_alone():
    seven = {one.method.name for one in advise(replace(PLENTY, memory=bytes_of("24GB"))) if not one.refused}
    assert {"lora", "qlora"} <= seven
    assert "full" not in seven
    large = {one.method.name for one in advise(Need(shape=of_parameters(33e9), memory=bytes_of("24GB"))) if not one.refused}
    assert large == {"qlora", "loftq"}


def comparison(
    tmp_path, values: dict[str, float], column: str = "answers", weights: float = PLENTY.parameters
) -> SimpleNamespace:
    size = {"trainable_parameters": {"value": weights / 100}, "trainable_share": {"value": 0.01}}
    rows = [
        {"label": name, "method": {"name": name}, "cells": {**size, column: {"value": value}}} for name, value in values.items()
    ]
    rows.append({"label": "failed", "method": {"name": "dora"}, "cells": {column: None}})
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "comparison.json").write_text(json.dumps({"rows": rows}))
    return SimpleNamespace(path=tmp_path, key="c0ffee" + 58 * "0")


def test_your_own_comparison_replaces_the_published_quality_and_is_named(tmp_path):
    mine = comparison(tmp_path, {"bitfit": 0.5, "lora": 0.75, "ia3": 1.25})
    found = own_results([mine], PLENTY)
    assert {name: (reason.points, reason.rests_on) for name, reason in found.items()} == {
        name: (points, f"comparison c0ffee000000, a model of {PLENTY.parameters / 1e6:,.0f}M weights")
        for name, points in {"bitfit": 10.0, "lora": 5.0, "ia3": 0.0}.items()
    }
    ranked = {one.method.name: one for one in advise(PLENTY, [mine])}
    assert ranked["bitfit"].score == 10
    assert ranked["dora"].reasons[0].rests_on.startswith("PEFT's public benchmark")
    assert order(PLENTY).index("lora") < order(PLENTY).index("bitfit")


def test_preferences_go_by_held_out_pairs_and_a_comparison_that_beat_nothing_ranks_nothing(tmp_path):
    pairs = comparison(tmp_path / "a", {"lora": 0.75, "ia3": 0.625}, "preferences")
    assert {name: reason.points for name, reason in own_results([pairs], replace(PLENTY, task="preferences")).items()} == {
        "lora": 10,
        "ia3": 5,
    }
    assert own_results([comparison(tmp_path / "b", {"lora": 1.5})], PLENTY) == {}


def test_starting_values_grow_with_the_data_and_keep_alphas_ratio():
    sizes = {rows: starting(replace(PLENTY, rows=rows), "lora") for rows in (500, 5000, 50_000)}
    assert {rows: (method.rank, method.alpha) for rows, method in sizes.items()} == {
        500: (8, 16),
        5000: (16, 32),
        50_000: (64, 128),
    }
    assert starting(replace(PLENTY, rows=500), "prompt_tuning").length == 10


def test_the_fragment_is_the_part_of_a_plan_that_trains_it():
    from tasks.train import SftSpec

    best = advise(replace(PLENTY, memory=bytes_of("24GB")))[0]
    read = yaml.safe_load(fragment(best))
    assert SftSpec.model_validate(read["sft"]).method == best.method
    assert read["execution"] == {"micro_batch": best.micro_batch, "gradient_checkpointing": best.checkpointing}


@pytest.mark.parametrize("text", ["7", "B", "-1GB", "seven B", ""])
def test_a_size_without_number_or_unit_is_refused(text):
    with pytest.raises(DataError, match="not a size; write it as"):
        bytes_of(text)
    with pytest.raises(DataError):
        weights_of(text)


def test_experts_are_advised_for_a_mixture_of_experts():
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_local_experts": 4, "vocab_size": 100}
    moe = next(one for one in advise(replace(PLENTY, shape=Shape.of(config))) if one.method.name == "moe_experts")
    assert moe.refused == ()


def test_a_comparison_on_a_model_of_another_size_says_nothing_and_the_youngest_stands_alone(tmp_path):
    small = comparison(tmp_path / "a", {"lora": 0.5}, weights=PLENTY.parameters / 50)
    assert own_results([small], PLENTY) == {}
    older, younger = (comparison(tmp_path / name, {method: 0.5}) for name, method in (("b", "lora"), ("c", "ia3")))
    assert own_results([older, younger, small], PLENTY).keys() == {"ia3"}
