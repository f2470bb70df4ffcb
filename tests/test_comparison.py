"""The comparison stage on handmade artifacts: numbers that were worked out, intervals that are paired, and rows with gaps."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scoring import row, write

from evals.contrast import QUALITIES, median, pooled
from evals.statistics import mean
from tasks.compare import COMPARISON, Compared, ComparisonSpec, part
from tasks.core.build import Workshop
from tasks.core.contract import Stage
from tasks.core.errors import DataError
from tasks.core.files import write_json
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.methods import Full, Ia3, Lora
from tasks.policy import Base, Link, PolicyRecord, write_record
from tasks.present import summary, table

N = 40
WEIGHTS = [1 + i % 5 for i in range(N)]
HARD = [math.sin(i) for i in range(N)]
"""how hard an item is: common to all models, and far larger than what tells them apart"""


class Trained(Spec):
    method: str = "lora"
    adapter: bool = True
    bytes: int = 100
    peak: int = 2**30
    speed: float = 50.0
    seed: int = 0
    micro_batch: int = 4


class Scored(Spec):
    answers: float = 0.0
    """nats per token less than the base"""
    noise: float = 0.0
    right: int = N // 2
    """held-out pairs whose better answer gained"""
    texts: float = 0.0


class Timed(Spec):
    decode: dict[str, float]


def train(spec, inputs, out, run):
    adapter = "0-sft" if spec.adapter else None
    place = out / "adapters" / "0-sft" if adapter else out / "model"
    place.mkdir(parents=True)
    (place / "weights.safetensors").write_bytes(b"0" * spec.bytes)
    base = Base(name="tiny", revision="sha256:0", files={})
    chain = (Link(stage="sft", method=spec.method, adapter=adapter),)
    write_record(out, PolicyRecord(task="policy", base=base, chain=chain, tokenizer="1" * 64, template="2" * 64))
    (out / "training.json").write_text(str(spec.seed))
    return {
        "method": spec.method, "trainable_parameters": 1000, "trainable_share": 0.01, "peak_rss_bytes": spec.peak,
        "tokens_per_second": spec.speed, "micro_batch": spec.micro_batch, "processes": 1,
    }  # fmt: skip


def score(spec, inputs, out, run):
    rows = []
    for i in range(N):
        name, group = f"i{i:03d}", f"c{i:03d}"
        jitter = spec.noise * (-1) ** i
        uneven = 1 + 0.4 * (-1) ** i / WEIGHTS[i]  # 1 on average over tokens; what is the same for all items has no interval
        gain = 1.0 if i < spec.right else -1.0
        rows += [
            row("answer_nll", name, 2 + HARD[i] - spec.answers * uneven + jitter, cluster=group, weight=WEIGHTS[i]),
            row("text_nll", name, 3 + HARD[i] + spec.texts * uneven, cluster=group, weight=WEIGHTS[i]),
            row("chosen_logp", name, -5 + HARD[i] + gain, cluster=group),
            row("rejected_logp", name, -5 - HARD[i], cluster=group),
        ]
    write(out, rows)
    return {}


def score_base(spec, inputs, out, run):
    rows = []
    for i in range(N):
        values = {"answer_nll": 2 + HARD[i], "text_nll": 3 + HARD[i], "chosen_logp": -5 + HARD[i], "rejected_logp": -5 - HARD[i]}
        weights = {"answer_nll": WEIGHTS[i], "text_nll": WEIGHTS[i]}
        rows += [row(m, f"i{i:03d}", v, cluster=f"c{i:03d}", weight=weights.get(m, 1)) for m, v in values.items()]
    write(out, rows)
    return {}


def time_use(spec, inputs, out, run):
    rounds = [
        {who: {"decode": (1 + r % 3) * per, "prefill": 2.0 * (1 + r % 3)} for who, per in spec.decode.items()} for r in range(9)
    ]  # rounds differ by a factor of three, as on a busy machine; ratios within a round do not
    memory = dict.fromkeys(spec.decode, 7000)
    fields = {"device": "cpu", "prompt_tokens": 8, "new_tokens": 2, "memory_bytes": memory, "rounds": rounds}
    write_json(out / "profile.json", fields)
    return {}


def merge(spec, inputs, out, run):
    (out / "model").write_text("merged")
    return {"max_logit_distance": 1e-5}


@dataclass
class Kitchen:
    """Artifacts for a comparison, under the names it asks for."""

    shop: Workshop
    made: dict = field(default_factory=dict)

    def base(self):
        self.made["scores/base"] = self._build("scores", "scores", score_base, Spec())
        return self

    def method(self, label, *, trained=None, scored=None, decode=None, seed=0, merged=False):
        if trained:
            self.made[part("sft", label, seed)] = self._build("sft", "policy", train, trained)
        if scored:
            self.made[part("scores", label, seed)] = self._build("scores", "scores", score, scored)
        if decode:
            self.made[part("profile", label, seed)] = self._build("profile", "profile", time_use, Timed(decode=decode))
        if merged:
            self.made[part("merge", label, seed)] = self._build("merge", "policy", merge, Spec())
        return self

    def compare(self, *rows, **more):
        spec = ComparisonSpec(rows=rows, **{"reference": rows[0].label, "resamples": 1000, **more})
        artifact, _ = self.shop.build(COMPARISON, spec, self.made)
        return artifact, json.loads((artifact.path / "comparison.json").read_text())

    def _build(self, name, kind, function, spec):
        return self.shop.build(Stage(name, 1, kind, function), spec, {})[0]


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(Workshop(Store(tmp_path / "store"), tmp_path / "models")).base()


LORA = Compared(label="lora", method=Lora(), learning_rate=1e-4)
FULL = Compared(label="full", method=Full(), learning_rate=1e-5)
IA3 = Compared(label="ia3", method=Ia3(), learning_rate=1e-3)


def cells(record, label):
    return next(row for row in record["rows"] if row["label"] == label)["cells"]


def test_numbers_are_those_worked_out_by_hand(kitchen):
    kitchen.method(
        "full", trained=Trained(method="full", adapter=False, bytes=5000, peak=4 * 2**30, speed=20.0),
        scored=Scored(answers=0.5, right=30, texts=0.1), decode={"base": 0.01, "unmerged": 0.01},
    )  # fmt: skip
    kitchen.method(
        "lora", trained=Trained(), scored=Scored(answers=0.25, right=20), merged=True,
        decode={"base": 0.01, "unmerged": 0.013, "merged": 0.01},
    )  # fmt: skip
    artifact, record = kitchen.compare(FULL, LORA)
    full, lora = cells(record, "full"), cells(record, "lora")
    assert full["answers"]["value"] == pytest.approx(math.exp(-0.5))
    assert full["forgetting"]["value"] == pytest.approx(math.exp(0.1))
    assert full["preferences"]["value"] == 30 / 40
    assert full["answers"]["n"] == full["answers"]["clusters"] == N
    assert (full["disk_bytes"]["value"], lora["disk_bytes"]["value"]) == (5000, 100)
    assert (full["peak_memory_bytes"], lora["peak_memory_bytes"]) == ({"value": 4 * 2**30}, {"value": 2**30})
    assert (full["tokens_per_second"]["value"], lora["trainable_share"]["value"]) == (20.0, 0.01)
    ratio = lora["decode_unmerged"]
    assert [round(ratio[name], 9) for name in ("value", "low", "high")] == [1.3, 1.3, 1.3]  # rounds differ, ratios do not
    assert (lora["decode_merged"]["value"], full["decode_merged"], full["merge_logit_distance"]) == (1.0, None, None)
    assert lora["merge_logit_distance"] == {"value": 1e-5}
    against = record["rows"][1]["against_reference"]
    assert against["answers"]["value"] == pytest.approx(math.exp(0.25))
    assert against["preferences"]["value"] == pytest.approx(-10 / 40)
    assert against["forgetting"]["value"] == pytest.approx(math.exp(-0.1))
    assert record["rows"][0]["against_reference"] == {}
    assert artifact.metrics == {"methods": 2, "failed": 0, "best_answers": "full", "not_told_from_it": 0}


def test_contrasts_are_paired_so_a_small_sure_difference_shows_under_overlapping_intervals(kitchen):
    kitchen.method("full", scored=Scored(answers=0.02, noise=0.5)).method("lora", scored=Scored(answers=0.0, noise=0.5))
    _, record = kitchen.compare(FULL, LORA)
    full, lora = cells(record, "full")["answers"], cells(record, "lora")["answers"]
    assert full["high"] > lora["low"]  # alone, each is as good as the other
    against = record["rows"][1]["against_reference"]["answers"]
    assert 1 < against["low"] <= against["value"] <= against["high"]
    assert record["leaders"]["answers"] == {"best": "full", "as_good": []}
    assert record["leaders"]["preferences"] == {"best": "full", "as_good": ["lora"]}
    assert "**" in next(line for line in text(kitchen, FULL, LORA).splitlines() if line.startswith("| full"))


def test_what_shows_nothing_about_other_items_has_an_interval_without_ends(kitchen):
    """Two methods that came out the same, such as one that never left the base and its reference."""
    kitchen.method("full", trained=Trained(), scored=Scored(answers=0.02)).method("lora", scored=Scored(answers=0.02))
    _, record = kitchen.compare(FULL, LORA)
    ends = {"low": None, "high": None, "n": N, "clusters": N}
    assert record["rows"][1]["against_reference"]["answers"] == {"value": 1.0, **ends}
    assert record["leaders"]["answers"]["as_good"] == ["lora"]
    assert "| lora | 1.000 [?, ?] |" in text(kitchen, FULL, LORA)  # and not in bold


def test_a_point_whose_interval_has_no_ends_is_drawn_without_a_bar(kitchen, tmp_path):
    from tasks.compare_plot import draw

    kitchen.method("full", trained=Trained(), scored=Scored(answers=0.02))
    _, record = kitchen.compare(FULL)
    cells(record, "full")["answers"] |= {"low": None, "high": None}
    draw(record, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def text(kitchen, *rows):
    return (kitchen.compare(*rows)[0].path / "comparison.md").read_text()


def test_a_method_that_failed_keeps_its_row_with_the_reason_and_the_others_their_numbers(kitchen):
    kitchen.method("full", trained=Trained(method="full"), scored=Scored(answers=0.5))
    broken = LORA.model_copy(update={"failed": {"sft": "out of memory: at one row | at a time"}})
    artifact, record = kitchen.compare(FULL, broken)
    assert record["rows"][1]["failed"] == {"sft": "out of memory: at one row | at a time"}
    assert set(cells(record, "lora").values()) == {None}
    assert cells(record, "full")["answers"]["value"] == pytest.approx(math.exp(-0.5))
    written = (artifact.path / "comparison.md").read_text()
    assert "sft: out of memory: at one row \\| at a time" in written
    assert artifact.metrics == {"methods": 2, "failed": 1, "best_answers": None, "not_told_from_it": 0}
    assert [line["failed"] for line in table(artifact)] == ["", "sft: out of memory: at one row | at a time"]


def test_seeds_are_averaged_item_by_item_and_shown_apart(kitchen):
    for seed, gain in ((0, 0.2), (1, 0.4)):
        kitchen.method("lora", trained=Trained(seed=seed, speed=40.0 + seed), scored=Scored(answers=gain), seed=seed)
        kitchen.method("ia3", trained=Trained(method="ia3", seed=seed), scored=Scored(answers=0.1), seed=seed)
    _, record = kitchen.compare(LORA, IA3, seeds=(0, 1))
    found = cells(record, "lora")["answers"]
    assert found["value"] == pytest.approx(math.exp(-0.3))
    assert found["per_seed"] == pytest.approx([math.exp(-0.2), math.exp(-0.4)])
    assert found["n"] == N  # items, not items times seeds
    assert cells(record, "lora")["tokens_per_second"] == {"value": 40.5, "per_seed": [40.0, 41.0]}
    assert record["rows"][1]["against_reference"]["answers"]["value"] == pytest.approx(math.exp(0.2))


def test_other_conditions_of_training_are_said(kitchen):
    kitchen.method("lora", trained=Trained()).method("ia3", trained=Trained(method="ia3", micro_batch=8))
    _, record = kitchen.compare(LORA, IA3)
    assert any("same micro-batch" in note and "8 x 1 processes for ia3" in note for note in record["notes"])
    _, record = kitchen.compare(LORA)
    assert record["notes"] == []


def test_the_page_holds_its_picture(kitchen):
    kitchen.method("full", trained=Trained(method="full"), scored=Scored(answers=0.5, noise=0.1))
    kitchen.method("lora", trained=Trained(), scored=Scored(answers=0.3, noise=0.1))
    artifact, _ = kitchen.compare(FULL, LORA)
    page = summary(artifact, built=True)
    assert "](data:image/png;base64,iVBOR" in page
    assert "](comparison.png)" not in page
    assert [line["method"] for line in table(artifact)] == ["full", "lora"]


def test_the_picture_is_the_same_bytes_each_time(kitchen, tmp_path):
    from tasks.compare_plot import draw

    kitchen.method("lora", trained=Trained(), scored=Scored(answers=0.3, noise=0.1))
    artifact, record = kitchen.compare(LORA)
    draw(record, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (artifact.path / "comparison.png").read_bytes()


def test_the_terminal_table_fits_and_names_every_method(kitchen):
    from rich.console import Console

    from tasks.compare_report import table as shown

    kitchen.method("full", trained=Trained(method="full"), scored=Scored(answers=0.5), decode={"base": 0.01, "unmerged": 0.01})
    kitchen.method("lora", trained=Trained(), scored=Scored(answers=0.3), decode={"base": 0.01, "unmerged": 0.02})
    _, record = kitchen.compare(FULL, LORA.model_copy(update={"failed": {"merge": "a logit moved"}}))
    console = Console(width=140, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(shown(record))
    lines = console.export_text().splitlines()
    console.file.close()
    assert [line.split()[0] for line in lines[1:3]] == ["full", "lora"]
    assert "+100 %" in lines[2]
    assert "✘ lora: merge: a logit moved" in lines[3]


def test_medians_have_an_interval_free_of_the_slowest_rounds():
    assert median([1.0, 1.0, 1.0, 1.0, 1.0, 50.0, 1.0, 1.0, 1.0], 0.95) == (1.0, 1.0, 1.0, 9)
    # of 20 values the 6th and the 15th: 1 - 2 P(Binomial(20, 1/2) < 6) = 0.959
    assert median([float(i) for i in range(1, 21)], 0.95) == (10.5, 6.0, 15.0, 20)
    with pytest.raises(DataError, match="5 values give no 95% interval"):
        median([1.0] * 5, 0.95)


def test_pooling_refuses_seeds_measured_on_different_items():
    import numpy as np

    ones = np.ones(3)
    with pytest.raises(DataError, match="different items"):
        pooled([mean(ones, np.array(list("abc"))), mean(ones, np.array(list("abd")))])


def test_every_quality_knows_which_way_is_better():
    from evals.estimates import METRICS

    assert {name: quality.better for name, quality in QUALITIES.items()} == {
        name: METRICS[quality.metric].better for name, quality in QUALITIES.items()
    }
