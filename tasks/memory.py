"""What takes memory while a model works, from its shape: weights, activations, logits, keys and values.  Imports no torch; bytes.

Every term has a reason, given beside it; docs/estimates.md holds the error against measured peaks.  What a stage needs of these
at once: `tasks.estimate`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.methods import METHODS, AnyMethod, StageName
from tasks.shapes import Shape, targets

Device = Literal["cpu", "cuda"]
LIBRARIES: Mapping[Device, int] = {"cpu": 600_000_000, "cuda": 0}
"""resident bytes of torch, transformers, TRL and PEFT as a forked child has them, and of what their first step leaves (170 MB:
buffers of kernels, arenas of autograd's thread); a child that imports for itself maps 200 MB of files more, which the machine
shares; torch's allocator on a GPU does not see them"""
HEAD_TOKENS: Mapping[Device, int] = {"cpu": 256, "cuda": 4096}
"""tokens of a tile of the chunked language-model head, see `trl.kernels.chunked_logprob`; 256 is what `fit.cheap_head` sets"""
HEAD_VOCABULARY = 32768
"""words of such a tile"""
_TILES: Mapping[Device, int] = {"cpu": 8, "cuda": 2}
"""tiles alive at once in the head's backward pass: product, scaled, log-probability, probability, target, gradient and two
temporaries where torch runs it; the product and its gradient where Triton does"""
_HEAP_BLOCK = 32 * 2**20
"""glibc takes larger blocks from the kernel and gives them back at once"""
HEAP_WASTE = 1.1
"""resident over requested bytes of smaller blocks that stay (measured: 1.05 for layer norms, 1.26 full, 1.43 a prefix)"""
_LOST = 1.75
"""blocks of an output's size that a frozen layer's output, an update's and its scaled copy leave behind once they are added:
torch asks for aligned memory, and glibc (measured: 2.36) then looks for more than a freed block of the same size can offer, so
that they do not serve the next layer (measured: 1.4 to 1.9)"""
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""bytes per weight: 4 bits, a scale in 8 bits per 64 weights, a scale of scales per 256 of those"""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak, by what takes them."""

    libraries: int = 0
    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    """keys and values kept while answers are written"""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Work:
    """What a stage has in hand at once, and how."""

    device: Device = "cpu"
    rows: int = 1
    """rows (pairs) of a micro-batch"""
    longest: int = 1024
    """tokens of its longest text, soft prompt not counted"""
    texts: int = 1
    """texts per row: 2 for a pair"""
    checkpointing: bool = False
    accumulated: bool = True
    """several micro-batches per step: gradients live through the next forward pass"""
    learned: float = 1.0
    """share of the tokens that the loss is on"""

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, padding counted."""
        return self.rows * self.texts * self.longest

    @property
    def padded(self) -> bool:
        """Whether texts of different length lie side by side, so that attention needs a mask."""
        return self.rows * self.texts > 1


# -- weights ----------------------------------------------------------------------------------------------------


def weights(shape: Shape, *, device: Device, quantised: bool = False, whole: bool = False) -> int:
    """Bytes of the base: float32 on a CPU and where every weight is trained, else bfloat16; matrices of blocks in 4 bits."""
    width = 4 if device == "cpu" or whole else 2
    if not quantised:
        return shape.parameters * width
    inside = sum(linear.inputs * linear.outputs for linear in shape.linears())
    # On a CPU the file stays mapped, and what was read of it resident, as long as the embedding in it is used where it lies.
    mapped = shape.stored * inside // shape.parameters if device == "cpu" and shape.stored == 4 * shape.parameters else 0
    return int(inside * _NF4) + (shape.parameters - inside) * width + mapped


# -- activations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What one block keeps for its backward pass, as numbers per token and block-wide constants."""

    small: int
    """numbers per token of the hidden width's order"""
    wide: int
    """numbers per token of the inner width's order"""
    constant: int = 0
    """numbers that do not grow with the tokens"""
    lost: int = 0
    """numbers per token that are freed at once, but that a heap cannot use again: see `_LOST`"""


_READS_INPUTS = ("full", "lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora", "loftq", "moe_experts")
"""methods that train matrices, whose gradients need the matrices' inputs"""
_READS_NORMED = ("full", "layer_norm", "bottleneck")
"""methods that train layer norms, whose gradients need what they scale"""
_SCALARS = {"gelu_new": 4, "gelu_fast": 4, "gelu_pytorch_tanh": 1, "gelu": 1, "relu": 1, "silu": 1, "quick_gelu": 2}
"""inner widths that an activation function without a gate keeps: its input, and what it is composed of in Python"""


def kept(shape: Shape, method: AnyMethod, work: Work) -> Kept:
    """What autograd saves in one block (counted with `saved_tensors_hooks`; see the test of this table)."""
    name, h, q, kv, f = method.name, shape.hidden, shape.queries, shape.keys, shape.inner
    reads, trains_norms = name in _READS_INPUTS, name in _READS_NORMED
    small = 2 * h  # what each norm reads: the residual stream
    small += 2 * h if reads else 0  # what it writes, read by trained matrices
    small += 2 * h if trains_norms and shape.rms else 0  # what its weight scales; LayerNorm's own kernel computes it again
    shared = q if work.padded else kv  # with a mask, keys and values are repeated for each query head
    small += 2 * q + 2 * shared + shape.heads  # queries, attention's output, keys, values, log-sums
    small += work.longest if work.padded else 0  # the mask as numbers: a row of `longest` per token
    inner = f * shape.active
    wide = 3 * inner if shape.gated else _SCALARS.get(shape.activation, 1) * inner
    wide += inner if reads and (shape.gated or shape.activation != "relu") else 0  # relu keeps its output already
    extra = _EXTRA.get(name, lambda shape, method: Kept(0, 0))(shape, method)
    return Kept(small + extra.small, wide + extra.wide, extra.constant, extra.lost)


def _of_low_rank(shape: Shape, method: Any) -> Kept:  # noqa: ANN401
    """The narrow products; with dropout the dropped inputs and their masks; for DoRA both outputs and the change as a matrix."""
    found = targets(shape, method)
    blocks = shape.layers
    small = method.rank * len(found) // blocks
    if method.dropout:
        small += int(1.25 * sum(layer.inputs for layer in found)) // blocks
    outputs = sum(layer.outputs for layer in found) // blocks
    if method.name != "dora":
        return Kept(small, 0, lost=int(_LOST * outputs))
    constant = sum(layer.inputs * (layer.inputs + method.rank) for layer in found) // blocks
    return Kept(small + 2 * outputs, 0, constant, int(_LOST * outputs))


_EXTRA: dict[str, Callable[[Shape, Any], Kept]] = {
    **dict.fromkeys(("lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora", "loftq"), _of_low_rank),
    "bottleneck": lambda shape, method: Kept(2 * (shape.hidden + 2 * method.size), 0, lost=int(_LOST * 2 * shape.hidden)),
    "bitfit": lambda shape, method: Kept(0, 0, lost=sum(layer.outputs for layer in shape.plain_linears()) // shape.layers),
    "ia3": lambda shape, method: Kept(2 * shape.keys, shape.inner * shape.active),
}
"""what a method's own modules keep in a block"""


def activations(shape: Shape, method: AnyMethod, work: Work, stage: StageName = "sft") -> int:
    """Bytes kept from the forward pass until the backward pass has used them, and what a block needs while it is computed."""
    width = 4 if work.device == "cpu" else 2
    block = kept(shape, method, work)
    per_token = block.small + block.wide
    whole = work.tokens * width * per_token + 4 * block.constant
    if method.name == "head":  # nothing is kept; a block is computed and let go
        return _resident(passing(shape, work.device, work.tokens), work, shape)
    if not recomputes(method, work):
        lost = work.tokens * width * block.lost
        return _resident(shape.layers * whole, work, shape, lost=shape.layers * lost)
    boundaries = shape.layers * work.tokens * width * shape.hidden
    # The head is done before a block is computed again, so of the two only the larger counts.
    return _resident(boundaries + max(0, whole - logits(shape, work, stage)), work, shape, exact=True)


def recomputes(method: AnyMethod, work: Work) -> bool:
    """Whether blocks are computed again in the backward pass."""
    return work.checkpointing and METHODS[method.name].checkpointing


def _resident(requested: float, work: Work, shape: Shape, *, lost: float = 0, exact: bool = False) -> int:
    """Resident bytes of activations: on a CPU more than requested, where blocks are small enough to come from the heap.

    `lost`: bytes freed that the heap cannot use again.  `exact`: the child runs with an allocator that gives every block back
    (`launch.environment`, gradient checkpointing).
    """
    heap = work.device == "cpu" and not exact and 4 * work.tokens * shape.inner <= _HEAP_BLOCK
    return int(HEAP_WASTE * requested + lost) if heap else int(requested)


def logits(shape: Shape, work: Work, stage: StageName) -> int:
    """Bytes of the language-model head's tiles; a reward model has a head of one number."""
    if stage in ("reward", "task"):
        return 0
    width = 4 if work.device == "cpu" else 2
    tokens = min(HEAD_TOKENS[work.device], max(1, int(work.tokens * work.learned)))
    return _TILES[work.device] * tokens * min(HEAD_VOCABULARY, shape.vocabulary) * width


# -- without gradients --------------------------------------------------------------------------------------------


def passing(shape: Shape, device: Device, tokens: int) -> int:
    """Bytes alive inside one block of a forward pass without gradients."""
    width = 4 if device == "cpu" else 2
    return tokens * width * (3 * shape.inner * shape.active + 4 * shape.hidden)


def key_value_cache(shape: Shape, device: Device, tokens: int) -> int:
    """Bytes of the keys and values of `tokens` positions in all layers."""
    return tokens * shape.layers * 2 * shape.keys * (4 if device == "cpu" else 2)
