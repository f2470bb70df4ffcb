"""A probe runs the real job on texts of the length it is asked for."""

import pytest
import tiny

from tasks.core.contract import Execution, Run
from tasks.core.errors import SpecError
from tasks.policy import base_path, read_record
from tasks.preference import DpoSpec
from tasks.probe import _ROWS, able, probe
from tasks.train import RewardSpec, SftSpec
from tasks.workload import Reader


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
@pytest.mark.parametrize("longest", [24, 57, 200])
def test_made_up_texts_are_as_long_as_asked_and_the_next_row_is_a_word_shorter(shop, stage, longest):
    reader = Reader.of(base_path(shop.models, read_record(shop.policy).base))
    for less in (0, 1):
        row = _ROWS[stage](reader, longest, less)
        texts = [row["messages"]] if stage == "sft" else [
            [*row["prompt"], {"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")
        ]  # fmt: skip
        lengths = [len(reader.ids(text)) for text in texts]
        assert max(lengths) <= longest
        assert max(lengths) >= longest - 4 * (1 + less)  # a word is up to four tokens of this tokenizer


def test_only_trainings_on_a_base_with_a_template_can_be_probed(shop, tmp_path):
    folder = base_path(shop.models, read_record(shop.policy).base)
    assert able(SftSpec(), folder)
    assert not able(object(), folder)
    assert not able(SftSpec(), tmp_path)


def test_texts_too_short_to_probe_are_refused(shop, tmp_path):
    with pytest.raises(SpecError, match="texts of 8 tokens are too short"):
        probe(SftSpec(), shop.policy, tmp_path, Run(tmp_path, shop.models, Execution(device="cpu")), rows=1, longest=8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SftSpec, RewardSpec, DpoSpec])
def test_a_probe_reports_the_childs_peak_and_speed_and_leaves_nothing(shop, tmp_path, kind):
    folder = base_path(shop.models, read_record(shop.policy).base)
    spec = kind.model_validate({"method": tiny.METHOD["lora"]})
    found = probe(spec, shop.policy, folder, Run(tmp_path, shop.models, Execution(device="cpu")), rows=2, longest=48)
    assert 400e6 < found.peak < 1.5e9
    assert found.tokens_per_second > 0
    assert list(tmp_path.iterdir()) == []
