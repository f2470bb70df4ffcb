"""A release: only on a pass, only of the policy that was judged, only of whole bytes, and with a card that tells all of it."""

import json
import os

import pytest
import yaml
from huggingface_hub import ModelCard
from releasing import GATES, pipeline, released
from scoring import rows, write

from evals.gates import Gate
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.errors import DataError, GateError, SpecError
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.judge import VERDICT, VerdictSpec
from tasks.release import RELEASE, ReleaseSpec, refusal

SPEC = ReleaseSpec(name="demo")


@pytest.fixture
def shop(tmp_path):
    return Workshop(Store(tmp_path / "store"), tmp_path / "models")


def card(artifact):
    text = (artifact.path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_release_names_policy_verdict_and_lineage(shop):
    made = pipeline(shop)
    artifact, _ = shop.build(RELEASE, SPEC, made)
    record = json.loads((artifact.path / "release.json").read_text())
    assert record["policy"] == {"key": made["policy"].key, "digest": made["policy"].digest}
    assert record["base"]["name"] == "smollm2-135m-instruct"
    assert [link["stage"] for link in record["chain"]] == ["sft", "dpo"]
    assert record["verdict"]["verdict"] == "pass"
    assert record["verdict"]["key"] == made["verdict"].key
    assert {part["key"] for part in record["lineage"]} == {one.key for one in made.values()}
    assert record["lineage"][0]["stage"] == "preferences"  # inputs first
    assert artifact.metrics == {"policy": made["policy"].key, "verdict": "pass", "gates": 2}


def test_equal_inputs_give_equal_bytes(shop, tmp_path):
    assert released(Workshop(Store(tmp_path / "elsewhere"), tmp_path)).digest == released(shop).digest


@pytest.mark.parametrize(("quality", "said"), [(0.0, "review"), (-1.0, "fail")])
def test_anything_but_a_pass_is_refused_with_the_numbers(shop, quality, said):
    made = pipeline(shop, quality=quality)
    with pytest.raises(
        GateError, match=rf"demo: not released, the verdict is {said}: reward_win_rate: need >= 0.5 against parent, got 0\.\d"
    ):
        shop.build(RELEASE, SPEC, made)
    assert not list(shop.store.root.glob("release/*"))
    assert refusal(made["verdict"].path).startswith(f"not released, the verdict is {said}: ")


def test_a_long_refusal_names_two_gates_and_counts_the_rest(shop):
    gates = [Gate(metric="reward_win_rate", at_least=bound) for bound in (0.5, 0.6, 0.7, 0.8)]
    no = refusal(pipeline(shop, quality=-1.0, gates=gates)["verdict"].path)
    assert no.count("reward_win_rate") == 2
    assert no.endswith("(and 2 more)")


def test_a_pass_is_not_refused(shop):
    assert refusal(pipeline(shop)["verdict"].path) is None


def test_no_gate_no_release(shop):
    with pytest.raises(SpecError, match="demo: a release needs at least one gate"):
        shop.build(RELEASE, SPEC, pipeline(shop, gates=()))


def test_a_policy_whose_bytes_changed_is_refused(shop):
    made = pipeline(shop)
    weights = made["policy"].path / "weights.bin"
    sealed = weights.stat()
    weights.chmod(0o644)
    weights.write_bytes(b"weights 9")  # as many bytes, and below an older time: only their digest tells
    os.utime(weights, ns=(sealed.st_atime_ns, sealed.st_mtime_ns))
    with pytest.raises(DataError, match=r"weights.bin was altered; `align rerun dpo PLAN`"):
        shop.build(RELEASE, SPEC, made)


def test_a_verdict_on_another_policy_is_refused(shop):
    made, other = pipeline(shop), pipeline(shop, seed=7)
    with pytest.raises(DataError, match="was not measured on policy"):
        shop.build(RELEASE, SPEC, {**made, "policy": other["policy"]})


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("scores_candidate", "scores_candidate, which the verdict was judged on"),
        ("answers_candidate", "was not measured on policy"),
    ],
)
def test_a_verdict_that_cannot_be_followed_to_the_policy_is_refused(shop, missing, said):
    made = pipeline(shop)
    del made[missing]
    with pytest.raises(DataError, match=said):
        shop.build(RELEASE, SPEC, made)


def test_a_verdict_without_a_candidate_is_refused(shop):
    made = pipeline(shop)
    gate = Gate(metric="length_accuracy", at_least=0)

    def lengths(spec, inputs, out, run):
        write(out, rows("chosen_longer", [1.0, 0.0, 1.0], subject="length"))
        return {}

    scores, _ = shop.build(Stage("lengths", 1, "scores", lengths), Spec(), {})
    verdict, _ = shop.build(VERDICT, VerdictSpec(gates=(gate,), resamples=1000), {"rewards": scores})
    with pytest.raises(DataError, match="the scores that the verdict was judged on are not among its inputs"):
        shop.build(RELEASE, SPEC, {**made, "rewards": scores, "verdict": verdict})


def test_an_unreadable_verdict_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"verdict.json: not readable as JSON"):
        refusal(tmp_path)


def test_the_card_has_the_hubs_front_matter(shop):
    spec = ReleaseSpec(
        name="demo", license="apache-2.0", base_model="HuggingFaceTB/SmolLM2-135M-Instruct", datasets=("org/pairs",),
        languages=("en", "zh"), tags=("helpful", "dpo"),
    )  # fmt: skip
    artifact, _ = shop.build(RELEASE, spec, pipeline(shop))
    front, _ = card(artifact)
    assert front == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0", "language": ["en", "zh"],
        "datasets": ["org/pairs"], "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["helpful", "dpo", "alignflow", "sft", "lora"],
    }  # fmt: skip
    assert ModelCard((artifact.path / "README.md").read_text()).data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_card_tells_how_it_was_made_why_it_passed_and_what_to_beware_of(shop):
    made = pipeline(shop)
    spec = ReleaseSpec(name="demo", summary="Answers briefly.", limits=("English only.",))
    artifact, _ = shop.build(RELEASE, spec, made)
    front, body = card(artifact)
    assert "license" not in front
    for part in (
        "# demo\n\nAnswers briefly.\n",
        "Trained in 2 steps: sft (lora), then dpo (lora).",
        "✅ pass: 2 of 2 gates hold",
        "| ✅ | finished_rate | >= 0.9 | 1.000 |",
        "answers must end \\| always",
        "- reward_win_rate: need >= 0.5 against parent, got ",
        f"### 1. preferences (`preferences/{made['preferences'].key[:12]}`)",
        "| rows in | 1,200 |\n| rows kept | 1,100 |\n| longer chosen share | 0.5312 |\n| refused: empty \\| blank | 100 |\n",
        '```json\n{\n  "quality": 1.0,\n  "seed": 0\n}\n```',
        f"- dpo `policy/{made['policy'].key[:12]}`\n  - data: preferences `preferences/{made['preferences'].key[:12]}`\n",
        "    - 0: file sha256 `",
        "- English only.\n",
        "- No licence was stated",
    ):
        assert part in body, part
    assert GATES[1].note not in body  # its bar would break the table
    assert "a private line" not in body


def test_a_changed_card_template_is_a_changed_release(shop, monkeypatch, tmp_path):
    made = pipeline(shop)
    before = shop.identity(RELEASE, SPEC, made).key
    other = tmp_path / "model_card.md.j2"
    other.write_text("# {{ spec.name }}")
    monkeypatch.setattr("tasks.release.CARD", other)
    assert shop.identity(RELEASE, SPEC, made).key != before
