"""A folder with a small task of lm-eval of each kind, on the same made-up documents."""

import json
from pathlib import Path

import tiny

SENTENCES = tiny.sentences(36, 5)
DOCUMENTS = [
    {"query": f"{SENTENCES[i]}, therefore", "choices": [SENTENCES[12 + i], f"{SENTENCES[24 + i]} {SENTENCES[i]}"], "gold": i % 2}
    for i in range(12)
]
_COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: documents.jsonl}}
test_split: test
metadata: {version: 1.0}
"""
TASKS = {
    "choose": """
        output_type: multiple_choice
        doc_to_text: "{{query}}"
        doc_to_choice: "{{choices}}"
        doc_to_target: gold
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
          - {metric: acc_norm, aggregation: mean, higher_is_better: true}
          - {metric: f1, aggregation: f1, higher_is_better: true}
        """,
    "write": """
        output_type: generate_until
        doc_to_text: "{{query}}"
        doc_to_target: !function checks.target
        generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
        filter_list:
          - {name: strict-match, filter: [{function: take_first}]}
          - {name: first-letter, filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]}
        """,
    "continue": """
        output_type: loglikelihood
        doc_to_text: "{{query}}"
        doc_to_target: " {{choices[0]}}"
        metric_list:
          - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
          - {metric: acc, aggregation: mean, higher_is_better: true}
        """,
    "read": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{query}}"
        metric_list:
          - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
          - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
        """,
}


def write_tasks(folder: Path) -> Path:
    """Write the tasks `tiny_<name>`, a group of two and their documents to `folder`."""
    folder.mkdir(parents=True)
    (folder / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    (folder / "_common").write_text(_COMMON)
    (folder / "checks.py").write_text("def target(document):\n    return document['choices'][document['gold']]\n")
    for name, text in TASKS.items():
        lines = [line[8:] for line in text.strip("\n").splitlines()]
        (folder / f"{name}.yaml").write_text("\n".join([f"task: tiny_{name}", "include: _common", *lines]))
    (folder / "all.yaml").write_text("group: tiny_all\ntask: [tiny_choose, tiny_write]\n")
    return folder
