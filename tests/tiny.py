"""A tiny random Llama with a byte-level BPE tokenizer and a ChatML-like template, for tests that need a real model in seconds."""

import hashlib
import json
import random
from pathlib import Path

from tasks.core.files import file_digest, tree
from tasks.methods import METHODS
from tasks.policy import Base, PolicyRecord, base_path, find_template, template_digest, tokenizer_digest, write_record

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WORDS = "red blue green one two three cat dog bird says what is the colour of sky grass yes no maybe please thank you".split()  # noqa: SIM905
_SIZE = {
    **{name: {"rank": 4} for name in ("lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora", "loftq")},
    "bottleneck": {"size": 4},
    "prompt_tuning": {"length": 5},
    "p_tuning": {"length": 5, "hidden": 16},
    "prefix_tuning": {"length": 5, "hidden": 16},
    "p_tuning_v2": {"length": 5},
}
METHOD = {name: {"name": name, **_SIZE.get(name, {})} for name in METHODS}
"""methods at a size that suits it"""


def sentences(count: int, seed: int = 0) -> list[str]:
    """Deterministic nonsense of 3 to 8 words each."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(count)]


def write_model(
    folder: Path, *, kind: str = "llama", layers: int = 2, hidden: int = 32, seed: int = 0, positions: int = 256
) -> Path:
    """Write a tiny decoder with tokenizer and template to `folder`; pad == eos == <|im_end|>, as SmolLM has it."""
    if kind in ("t5", "bart"):
        return write_seq2seq(folder, kind, layers=layers, hidden=hidden, seed=seed)
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        LlamaConfig,
        MixtralConfig,
        OPTConfig,
        PreTrainedTokenizerFast,
    )

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(sentences(200) + ["user assistant system"] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shape = {"vocab_size": len(tokenizer), "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 4}
    shape |= {"max_position_embeddings": positions, "tie_word_embeddings": True}
    shape |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    inner = {"intermediate_size": 2 * hidden, "num_key_value_heads": 2}
    configs = {
        "llama": lambda: LlamaConfig(**shape, **inner),
        "gpt2": lambda: GPT2Config(**shape),  # has biases, and layers that store their weights transposed
        "opt": lambda: OPTConfig(**shape, ffn_dim=2 * hidden, word_embed_proj_dim=hidden),
        "mixtral": lambda: MixtralConfig(**shape, **inner, num_local_experts=4, num_experts_per_tok=2),
    }
    AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(folder)
    return folder


def write_seq2seq(folder: Path, kind: str = "t5", *, layers: int = 2, hidden: int = 32, seed: int = 0) -> Path:
    """Write a tiny T5 or BART to `folder`, its tokenizer as T5's: no template, pad and eos apart, eos after every text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import AutoModelForSeq2SeqLM, BartConfig, PreTrainedTokenizerFast, T5Config

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "</s>", "<unk>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(sentences(200), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    ends = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "vocab_size": len(tokenizer)}
    configs = {
        "t5": lambda: T5Config(
            d_model=hidden, d_kv=hidden // 4, d_ff=2 * hidden, num_layers=layers, num_heads=4, dropout_rate=0.0, **ends
        ),
        "bart": lambda: BartConfig(
            d_model=hidden, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=2 * hidden, decoder_ffn_dim=2 * hidden, max_position_embeddings=128, dropout=0.0, bos_token_id=1,
            forced_eos_token_id=None, **ends,
        ),
    }  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(configs[kind]()).save_pretrained(folder)
    return folder


def write_encoder(folder: Path, *, hidden: int = 32, positions: int = 128) -> Path:
    """Write a tiny BERT as pre-training leaves it (no pooler, no chat template) with a WordPiece tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AutoModelForMaskedLM, BertConfig, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(i) for i in range(33, 127)]
    words = [*special, *letters, *(f"##{letter}" for letter in letters), *dict.fromkeys(WORDS)]
    pieces = Tokenizer(models.WordPiece({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * hidden,
        max_position_embeddings=positions, pad_token_id=0,
    )  # fmt: skip
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def write_policy(out: Path, models: Path, source: Path, name: str = "tiny") -> Path:
    """Put the model of `source` into the model cache `models` and write the `policy` artifact that starts from it to `out`."""
    files = {file.relative_to(source).as_posix(): file_digest(file) for file in tree(source)}
    revision = "sha256:" + hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    base = Base(name=name, revision=revision, files=files)
    place = base_path(models, base)
    if not place.exists():
        place.mkdir(parents=True)
        for file in tree(source):
            (place / file.relative_to(source)).write_bytes(file.read_bytes())
    out.mkdir(parents=True, exist_ok=True)
    template = template_digest(source) if find_template(source) else None
    write_record(out, PolicyRecord(task="policy", base=base, tokenizer=tokenizer_digest(source), template=template))
    return out


def write_rows(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    """Write `rows` as `folder/<name>.parquet`; returns the folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder
