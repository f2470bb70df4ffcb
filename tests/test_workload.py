"""Workload: tokens of a stage's rows before it runs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import tiny

from tasks.workload import Reader, measured, steps


def test_tokens_are_counted_as_the_stage_reads_them(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    folder = tiny.write_model(tmp_path / "llama")
    reader, tokenizer = Reader.of(folder), AutoTokenizer.from_pretrained(folder)
    words = tiny.sentences(20)
    rows = [
        [{"role": "user", "content": a}, {"role": "assistant", "content": b}]
        for a, b in zip(words[::2], words[1::2], strict=True)
    ]
    lengths = [len(tokenizer.apply_chat_template(row)["input_ids"]) for row in rows]
    pq.write_table(
        pa.Table.from_pylist([{"id": str(i), "messages": row} for i, row in enumerate(rows)]), tmp_path / "train.parquet"
    )
    found = measured(reader, tmp_path / "train.parquet", "sft", 1000)
    assert found == (10, sum(lengths) / 10, max(lengths), "curated data")
    assert measured(reader, tmp_path / "train.parquet", "sft", 20).mean == sum(min(20, n) for n in lengths) / 10
    assert steps(10, global_batch=4, epochs=1.0, max_steps=None) == 3
