"""The shape of a model, without its weights: memory, time and the number of trained parameters follow from it.  Imports no torch.

It is read from `config.json` and the headers of safetensors files, from the metadata of the embedded GGUF, or made up for a size.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from tasks import smollm
from tasks.core.errors import DataError, SpecError
from tasks.core.spec import Spec
from tasks.methods import StageName

_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads"),
    "key_heads": ("num_key_value_heads",),
    "head_width": ("head_dim", "d_kv"),
    "inner": ("intermediate_size", "moe_intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim", "encoder_ffn_dim"),
    "vocabulary": ("vocab_size",),
    "positions": ("max_position_embeddings", "n_positions"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "active": ("num_experts_per_tok",),
    "decoder_layers": ("num_decoder_layers", "decoder_layers"),
    "activation": ("hidden_act", "activation_function", "dense_act_fn", "hidden_activation"),
}
"""what the families call a field"""
_EMBEDDING = re.compile(
    r"embed|(^|\.)(wte|wpe|shared)\.|lm_head|relative_attention_bias|(^|\.)(score|classifier|qa_outputs|pooler)\."
)
_ROUTER = re.compile(r"(moe|mlp|feed_forward|block_sparse_moe)\.(gate|router)\.weight$|\.router\.(weight|layer\.weight)$")
_TRANSPOSED = ("gpt2", "openai-gpt")
"""families that store a matrix as (in, out)"""


class Tensor(NamedTuple):
    """One stored weight."""

    name: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def numbers(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


class Linear(NamedTuple):
    """A matrix that maps `inputs` to `outputs`."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Shape:
    """A model as far as memory and time go."""

    family: str
    hidden: int
    inner: int
    """width between the two halves of a feed-forward part"""
    layers: int
    """blocks, of encoder and decoder together"""
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    positions: int
    activation: str
    experts: int
    active: int
    """experts that a token passes through; 1 without experts"""
    tensors: tuple[Tensor, ...]

    @property
    def queries(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys of a token."""
        return self.key_heads * self.head_width

    @property
    def parameters(self) -> int:
        """Numbers in the weights; a tied head is stored, and counted, once."""
        return sum(tensor.numbers for tensor in self.tensors)

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def gated(self) -> bool:
        """Whether a gate multiplies the inner width (SwiGLU and its like)."""
        return any(re.search(r"gate_proj|gate_up_proj|\.w3\.|\.wi_1\.", tensor.name) for tensor in self.tensors)

    @property
    def rms(self) -> bool:
        """Whether layer norms have a weight alone, as RMSNorm has, which torch runs as single operations."""
        names = {tensor.name for tensor in self.tensors}
        norms = [tensor.name for tensor in self.tensors if _is_norm(tensor)]
        return bool(norms) and not any(name.removesuffix("weight") + "bias" in names for name in norms)

    def linears(self) -> list[Linear]:
        """The matrices inside the blocks, experts and routers included, embeddings and heads not."""
        return [
            Linear(tensor.name.removesuffix(".weight"), *self._sides(tensor.shape))
            for tensor in self.tensors
            if len(tensor.shape) == 2 and tensor.name.endswith("weight") and not _EMBEDDING.search(tensor.name)
        ]  # fmt: skip

    def plain_linears(self) -> list[Linear]:
        """Those that are linear layers in memory too: experts are stacked there, and a router is a module of its own."""
        return [
            linear for linear in self.linears() if not _is_expert(linear.name) and not _ROUTER.search(f"{linear.name}.weight")
        ]

    def count(self, wanted: Callable[[Tensor], bool]) -> int:
        """Numbers in the tensors for which `wanted` holds."""
        return sum(tensor.numbers for tensor in self.tensors if wanted(tensor))

    def _sides(self, shape: Sequence[int]) -> tuple[int, int]:
        return (shape[0], shape[1]) if self.family in _TRANSPOSED else (shape[1], shape[0])

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Sequence[Tensor] = ()) -> "Shape":
        """The shape under a `config.json`; without `tensors`, those of a Llama of that shape."""
        inner = config.get("text_config")
        text: Mapping[str, Any] = cast(Mapping[str, Any], inner) if isinstance(inner, Mapping) else config

        def field(name: str, default: Any = None) -> Any:  # noqa: ANN401  numbers and names
            return next((text[key] for key in _ALIASES[name] if text.get(key) is not None), default)

        hidden, layers, heads = field("hidden"), field("layers"), field("heads")
        if not (hidden and layers and heads):
            raise SpecError(
                f"config.json of {text.get('model_type', 'the model')}: no width, layers or heads under a known name, so nothing "
                "can be estimated from it"
            )
        if text.get("is_encoder_decoder"):
            layers += field("decoder_layers", layers)
        experts = field("experts", 0)
        shape = cls(
            family=str(text.get("model_type", "llama")), hidden=hidden, inner=field("inner", 4 * hidden), layers=layers,
            heads=heads, key_heads=field("key_heads", heads), head_width=field("head_width", hidden // heads),
            vocabulary=field("vocabulary", 0), positions=field("positions", 0), activation=str(field("activation", "silu")),
            experts=experts, active=field("active", 2) if experts else 1, tensors=tuple(tensors),
        )  # fmt: skip
        if tensors:
            return shape
        tied = bool(text.get("tie_word_embeddings", False))
        return replace(shape, tensors=tuple(_llama(shape, tied=tied)))


def of_folder(folder: Path) -> Shape:
    """The shape of the transformers model in `folder`.  Raises DataError if it is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no readable config.json here; is it a transformers model?") from error
    tensors = [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in _header(file)]
    return Shape.of(config, tensors)


def of_embedded() -> Shape:
    """The shape of the embedded model, from its GGUF's metadata, as it is written out: in float32."""
    config = smollm.shape_config()
    return Shape.of(config)


def of_parameters(count: float) -> Shape:
    """A Llama of about `count` weights, between the shapes that are published for such sizes.

    >>> round(of_parameters(7e9).parameters / 1e9, 1)
    7.2
    """
    names = ("hidden", "layers", "heads", "key_heads", "inner", "vocabulary")
    known = [Shape.of(_config(dict(zip(names, row, strict=True)))) for row in _SIZES]
    nearest = min(known, key=lambda shape: abs(math.log(shape.parameters / count)))
    if abs(nearest.parameters / count - 1) < 0.05:  # as near as sizes are named
        return nearest
    embeddings = nearest.count(lambda tensor: bool(_EMBEDDING.search(tensor.name)))
    grown = math.sqrt(max(count - embeddings, 0.2 * count) / (nearest.parameters - embeddings))
    hidden = max(64, round(nearest.hidden * grown / 64) * 64)
    heads = max(1, hidden // nearest.head_width)
    ratio = nearest.heads // nearest.key_heads
    fields = {
        "hidden": hidden, "heads": heads, "key_heads": max(1, heads // ratio), "layers": nearest.layers,
        "inner": round(nearest.inner * grown / 64) * 64, "vocabulary": nearest.vocabulary,
    }  # fmt: skip
    return Shape.of(_config(fields))


_SIZES = (
    (576, 30, 9, 3, 1536, 49152),  # SmolLM2-135M
    (960, 32, 15, 5, 2560, 49152),  # SmolLM2-360M
    (2048, 24, 32, 32, 8192, 49152),  # SmolLM2-1.7B
    (2048, 16, 32, 8, 8192, 128256),  # Llama 3.2 1B
    (3072, 28, 24, 8, 8192, 128256),  # Llama 3.2 3B
    (4096, 32, 32, 8, 14336, 32000),  # Mistral 7B
    (4096, 32, 32, 8, 14336, 128256),  # Llama 3 8B
    (5120, 40, 40, 40, 13824, 32000),  # Llama 2 13B
    (8192, 80, 64, 8, 28672, 128256),  # Llama 3 70B
)
"""hidden, layers, heads, key heads, inner, vocabulary, from the models' config.json"""
_UNTIED_FROM = 4096
"""smaller models share input and output embeddings"""


def _config(fields: Mapping[str, int]) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": fields["hidden"], "num_hidden_layers": fields["layers"],
        "num_attention_heads": fields["heads"], "num_key_value_heads": fields["key_heads"],
        "intermediate_size": fields["inner"], "vocab_size": fields["vocabulary"], "hidden_act": "silu",
        "tie_word_embeddings": fields["hidden"] < _UNTIED_FROM, "max_position_embeddings": 8192,
    }  # fmt: skip


def _llama(shape: Shape, *, tied: bool) -> Iterator[Tensor]:
    """Names and shapes of the weights of a Llama, in float32."""
    h, q, kv, f = shape.hidden, shape.queries, shape.keys, shape.inner

    def tensor(name: str, *sides: int) -> Tensor:
        return Tensor(f"{name}.weight", sides, 4 * math.prod(sides))

    yield tensor("model.embed_tokens", shape.vocabulary, h)
    for i in range(shape.layers):
        at = f"model.layers.{i}"
        yield tensor(f"{at}.input_layernorm", h)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield tensor(f"{at}.self_attn.{name}_proj", rows, h)
        yield tensor(f"{at}.self_attn.o_proj", h, q)
        yield tensor(f"{at}.post_attention_layernorm", h)
        yield tensor(f"{at}.mlp.gate_proj", f, h)
        yield tensor(f"{at}.mlp.up_proj", f, h)
        yield tensor(f"{at}.mlp.down_proj", h, f)
    yield tensor("model.norm", h)
    if not tied:
        yield tensor("lm_head", shape.vocabulary, h)


def _header(file: Path) -> Iterator[Tensor]:
    with file.open("rb") as opened:
        header: dict[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = tensor["data_offsets"]
            yield Tensor(name, tuple(tensor["shape"]), end - start)


def _is_norm(tensor: Tensor) -> bool:
    return len(tensor.shape) == 1 and tensor.name.endswith("weight")


def _is_expert(name: str) -> bool:
    return ".experts." in name


# -- what a method trains ---------------------------------------------------------------------------------------


def trained(shape: Shape, method: Spec, stage: StageName = "sft") -> int:
    """Numbers that `method` trains in `stage`; the head of a reward model is trained whole by every method."""
    name = str(getattr(method, "name"))  # noqa: B009  every method has one, the type of methods is a union
    return _TRAINED[name](shape, method) + (shape.hidden if stage == "reward" else 0)


_SEES = re.compile(r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|connector)\.")
"""the part of a vision-language model that images go through first"""


def targets(shape: Shape, method: Any) -> list[Linear]:  # noqa: ANN401  a low-rank method
    """The linear layers that get an update; those that see only where they are asked for."""
    layers = [one for one in shape.plain_linears() if method.targets == "all-linear+vision" or not _SEES.search(one.name)]
    if isinstance(method.targets, str):
        return layers
    return [layer for layer in layers if layer.name.rpartition(".")[2] in method.targets or layer.name in method.targets]


def _low_rank(shape: Shape, method: Any) -> int:  # noqa: ANN401
    found = targets(shape, method)
    magnitudes = sum(layer.outputs for layer in found) if method.name == "dora" else 0
    experts = _stacked(shape, method.rank) if isinstance(method.targets, str) else 0
    return sum(method.rank * (layer.inputs + layer.outputs) for layer in found) + magnitudes + experts


def _stacked(shape: Shape, rank: int) -> int:
    """Updates of stacked experts and routers: `rank` for each expert, twice that where gate and up lie in one matrix."""
    blocks = sum(bool(_ROUTER.search(tensor.name)) for tensor in shape.tensors)
    h, f, experts = shape.hidden, shape.inner, shape.experts
    return blocks * rank * (2 * experts * (h + 2 * f) + experts * (f + h) + (h + experts))


def _bottleneck(shape: Shape, method: Any) -> int:  # noqa: ANN401
    """Two modules per block (three in a decoder with cross-attention, whose blocks count an attention more)."""
    cross = sum("EncDecAttention.o." in tensor.name or "encoder_attn.out" in tensor.name for tensor in shape.tensors)
    places = 2 * shape.layers + cross
    return places * (2 * shape.hidden * method.size + method.size + shape.hidden) + (_norms(shape, method) if method.norms else 0)


def _prompt(shape: Shape, method: Any) -> int:  # noqa: ANN401
    return method.length * shape.hidden


def _encoded_prompt(shape: Shape, method: Any) -> int:  # noqa: ANN401
    """PEFT's prompt encoder: an embedding and an MLP of three layers, or an LSTM of two layers both ways and an MLP of two."""
    h, m = shape.hidden, method.hidden
    if method.encoder == "mlp":
        return method.length * h + (h * m + m) + (m * m + m) + (m * h + h)
    first, second = (2 * (4 * m * inputs + 4 * m * m + 8 * m) for inputs in (h, 2 * m))
    return method.length * h + first + second + (2 * m * 2 * m + 2 * m) + (2 * m * h + h)


def _prefix(shape: Shape, method: Any) -> int:  # noqa: ANN401
    out = 2 * shape.layers * shape.keys
    if method.name == "p_tuning_v2":
        return method.length * out
    return method.length * shape.keys + (shape.keys * method.hidden + method.hidden) + (method.hidden * out + out)


def _ia3(shape: Shape, method: Any) -> int:  # noqa: ANN401
    """A scale for each key, value and inner activation."""
    fused = any(".attn.c_attn." in tensor.name for tensor in shape.tensors)  # GPT-2 has queries, keys and values in one matrix
    crossed = sum(bool(re.search(r"EncDecAttention\.k\.|encoder_attn\.k_proj\.w", tensor.name)) for tensor in shape.tensors)
    per_block = (shape.queries + 2 * shape.keys if fused else 2 * shape.keys) + shape.inner
    return shape.layers * per_block + crossed * 2 * shape.keys


def _bitfit(shape: Shape, method: Any) -> int:  # noqa: ANN401
    if found := shape.count(lambda tensor: tensor.name.endswith("bias") and not _EMBEDDING.search(tensor.name)):
        return found
    return sum(linear.outputs for linear in shape.plain_linears())


def _norms(shape: Shape, method: Any) -> int:  # noqa: ANN401
    names = {tensor.name.removesuffix("weight") for tensor in shape.tensors if _is_norm(tensor)}
    return shape.count(lambda tensor: any(tensor.name == name + part for name in names for part in ("weight", "bias")))


_TRAINED: dict[str, Callable[[Shape, Any], int]] = {
    "full": lambda shape, method: shape.parameters,
    "head": lambda shape, method: 0,
    "bottleneck": _bottleneck,
    **dict.fromkeys(("lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora", "loftq"), _low_rank),
    "prompt_tuning": _prompt,
    "p_tuning": _encoded_prompt,
    "prefix_tuning": _prefix,
    "p_tuning_v2": _prefix,
    "ia3": _ia3,
    "bitfit": _bitfit,
    "layer_norm": _norms,
    "moe_experts": lambda shape, method: shape.count(lambda tensor: _is_expert(tensor.name)),
    "moe_router": lambda shape, method: shape.count(lambda tensor: bool(_ROUTER.search(tensor.name))),
}
"""method -> how many numbers it trains in a body of this shape"""
