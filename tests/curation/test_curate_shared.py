"""Real public files: every record is kept or in quarantine, in the numbers that were counted by hand or by another program."""

import gzip
import json

import pytest
from curating import SHARED, curate

from tasks.core.errors import DataError

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the public test data is not beside the checkout")

INSTRUCTIONS = {
    "axolotl/alpaca.json": (2, 0),
    "axolotl/conversation.json": (1, 0),
    "belle/zh_seed_tasks.json": (175, 0),
    "dolly/dolly_hhrlhf_train_small.jsonl": (999, 1),  # one prompt of more than 8000 characters
    "fastchat/dummy_conversation.json": (500, 0),
    "gsm8k/test.jsonl": (1319, 0),
    "llamafactory/glaive_toolcall_en_demo.json": (264, 36),  # 35 told twice word for word, one over-long
    "llamafactory/identity.json": (91, 0),
    "llamafactory/kto_en_demo.json": (146, 154),  # 150 disliked answers, 4 of the liked ones over-long
    "ms-swift/alpaca.csv": (3, 0),
    "ms-swift/alpaca.jsonl": (3, 0),
    "ms-swift/alpaca2.csv": (2, 1),  # aaaaa and AAAAA
    "ms-swift/chatml.jsonl": (2, 1),
    "ms-swift/conversations.jsonl": (2, 1),
    "ms-swift/multi_modal_1.jsonl": (1, 2),
    "ms-swift/sharegpt.jsonl": (3, 0),
    "ms-swift/swift_multi.json": (3, 0),
    "ms-swift/swift_multi.jsonl": (3, 0),
    "ms-swift/swift_single.csv": (2, 1),
    "ms-swift/swift_single.jsonl": (2, 1),
    "oasst/en_100_tree.jsonl": (98, 1),
    "rasbt/instruction-data.json": (1100, 0),
    "rasbt/instruction-data-with-preference.json": (1100, 0),
    "self-instruct/seed_tasks.jsonl": (175, 0),
    "self-instruct/user_oriented_instructions.jsonl": (252, 0),
    "torchtune/chat_tiny.json": (1, 0),
}
PREFERENCES = {
    "hh-rlhf/harmless-base.test.jsonl.gz": (2299, 13),
    "hh-rlhf/helpful-base.test.jsonl.gz": (2333, 21),
    "llamafactory/dpo_en_demo.json": (289, 10),  # 6 over-long, 4 twice word for word
    "llamafactory/dpo_zh_demo.json": (289, 11),  # 11 twice word for word
    "llamafactory/v1_dpo_demo.jsonl": (10, 0),
    "llmbar/adv_gptinst.json": (92, 0),
    "llmbar/adv_gptout.json": (47, 0),
    "llmbar/adv_manual.json": (46, 0),
    "llmbar/adv_neighbor.json": (134, 0),
    "llmbar/natural.json": (100, 0),
    "llmbar/processed_mtbench.json": (195, 5),
    "nemo-aligner/dummy-dpo.jsonl": (4, 96),  # four different rows, 25 times each
    "oasst/en_100_tree.jsonl": (99, 0),
    "rasbt/instruction-data-with-preference.json": (1094, 6),  # 6 with chosen == rejected
    "torchtune/hh_rlhf_tiny.json": (1, 0),
    "torchtune/stack_exchange_paired_tiny.json": (24, 1),
    "ultrafeedback-split/uf_clean_000_499.jsonl": (442, 58),
}
NOT_SUCH_DATA = {
    ("instructions", "axolotl/conversation.missingturns.json"): "empty answer (1)",
    ("instructions", "cold/dev.csv"): "no prompt with an answer (6431)",
    ("instructions", "fastchat/judge_prompts.jsonl"): "no prompt with an answer (8)",
    ("instructions", "fastchat/mt_bench_reference_gpt4.jsonl"): "no prompt with an answer (30)",
    ("instructions", "formats/demo-dataset.parquet"): "no prompt with an answer (6)",
    ("instructions", "formats/test_file.json.bz2"): "no prompt with an answer (10)",
    ("instructions", "formats/test_file.json.gz"): "no prompt with an answer (10)",
    ("instructions", "formats/test_file.json.xz"): "no prompt with an answer (10)",
    ("instructions", "gsm8k/example_model_solutions.jsonl"): "no prompt with an answer (1319)",
    ("instructions", "llamafactory/dataset_info.json"): "no prompt with an answer (1)",
    ("instructions", "llamafactory/mllm_demo.json"): "no folder of images was given (6)",
    ("instructions", "llm-foundry-eval/copa.jsonl"): "no prompt with an answer (100)",
    ("instructions", "ms-swift/swift_pre.csv"): "no prompt with an answer (3)",
    ("instructions", "open-instruct/rlvr_test.jsonl"): "does not end with an answer (100)",
    ("preferences", "llamafactory/kto_en_demo.json"): "no disliked answer left for the prompt (149)",
    ("preferences", "nemo-aligner/test-rm.jsonl"): "no two answers to compare (8)",
    ("preferences", "open-instruct/helpfulness-full.jsonl"): "fewer than two scored answers (2)",
    ("preferences", "open-instruct/preference_sample.jsonl"): "a Git LFS pointer, not the data",
    ("preferences", "rasbt/instruction-data.json"): "no two answers to compare (1100)",
    ("prompts", "cold/dev.csv"): "no prompt (6431)",
    ("texts", "gsm8k/test.jsonl"): "no text (1319)",
}
PROMPTS = {
    "fastchat/mt_bench_question.jsonl": (80, 0),
    "hh-rlhf/harmless-base.test.jsonl.gz": (2302, 10),
    "ifeval/ifeval_input_data.jsonl": (541, 0),
    "oasst/prompt_lottery_en_250_text.jsonl": (250, 0),
    "open-instruct/rlvr_test.jsonl": (100, 0),
    "xstest/xstest_prompts.csv": (450, 0),
}
TEXTS = {
    "data-juicer/demo-dataset-deduplication.jsonl": (13, 1),
    "encodings/hongloumeng_cr_only.txt": (1665, 1),
    "encodings/hongloumeng_gbk.txt": (477, 0),
    "formats/demo-dataset.csv": (6, 0),
    "formats/demo-dataset.jsonl": (2, 4),
    "formats/demo-dataset.parquet": (6, 0),
    "formats/demo-dataset.tsv": (6, 0),
    "llamafactory/c4_demo.jsonl": (300, 0),
    "mlx/train.jsonl": (998, 2),
    "tinyshakespeare/tinyshakespeare.txt": (7146, 76),
}
CASES = [
    (kind, name, counts)
    for kind, files in (("instructions", INSTRUCTIONS), ("preferences", PREFERENCES), ("prompts", PROMPTS), ("texts", TEXTS))
    for name, counts in files.items()
]


@pytest.mark.parametrize(("kind", "name", "counts"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_no_record_is_lost(tmp_path, kind, name, counts):
    done = curate(tmp_path, kind, SHARED / name)
    assert (done.metrics["rows_kept"], done.metrics["rows_quarantined"]) == counts
    assert done.metrics["rows_in"] == sum(counts) == done.metrics["rows_kept"] + len(done.rows("quarantine"))


@pytest.mark.parametrize(("kind", "name"), NOT_SUCH_DATA, ids=lambda value: value)
def test_a_file_of_another_kind_is_one_clear_error(tmp_path, kind, name):
    with pytest.raises(DataError) as error:
        curate(tmp_path, kind, SHARED / name)
    assert NOT_SUCH_DATA[kind, name] in str(error.value)
    assert "\n" not in str(error.value)


def test_whole_transcripts_are_split_as_a_plain_search_splits_them(tmp_path):
    """The last `\\n\\nAssistant:` parts prompt and answer, found here by a plain search."""
    path = SHARED / "hh-rlhf/helpful-base.test.jsonl.gz"
    expected = {}
    for number, line in enumerate(gzip.decompress(path.read_bytes()).decode().split("\n")[:-1], 1):
        row = json.loads(line)
        (before, _, chosen), (other, _, rejected) = (row[side].rpartition("\n\nAssistant:") for side in ("chosen", "rejected"))
        if before.strip() == other.strip() and chosen.strip() and rejected.strip() and chosen.strip() != rejected.strip():
            expected[number] = (chosen.strip(), rejected.strip())
    done = curate(tmp_path, "preferences", path)
    kept = {row["line"]: (row["chosen"], row["rejected"]) for row in done.kept}
    refused = {line: reason for line, reason in done.reasons if line in expected}
    assert set(refused.values()) == {"roles out of order"} and len(refused) == 6
    assert kept == {line: sides for line, sides in expected.items() if line not in refused}
    assert done.metrics["longer_chosen_share"] == pytest.approx(0.60, abs=0.005)


def test_chinese_in_gbk_comes_out_as_chinese(tmp_path):
    path = SHARED / "encodings/hongloumeng_gbk.txt"
    body = "\n".join(row["text"] for row in curate(tmp_path, "texts", path).rows("texts"))
    plain = path.read_bytes().decode("gb18030")
    assert "".join(body.split()) == "".join(plain.split())


def test_a_nameless_column_is_not_taken_for_a_prompt_but_can_be_named(tmp_path):
    done = curate(tmp_path, "prompts", SHARED / "cold/dev.csv", sources=[{"columns": {"prompt": "TEXT"}}])
    assert (done.metrics["rows_in"], done.metrics["rows_kept"]) == (6431, 6431 - len(done.rows("quarantine")))
    first = (SHARED / "cold/dev.csv").read_text(encoding="utf-8-sig").splitlines()[1].split(",", 4)[4]
    assert done.kept[0]["prompt"] == [{"role": "user", "content": first}]
