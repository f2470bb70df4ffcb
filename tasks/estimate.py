"""Memory and time of a stage before it runs, from the shape of its model.  Imports no torch; bytes and seconds throughout.

Every term has a reason, given beside it; docs/estimates.md holds the error against measured peaks.  On a CPU the peak is that of
the child's resident memory, on a GPU that of torch's allocator.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tasks.methods import METHODS, AnyMethod, StageName
from tasks.shapes import Shape, targets, trained

Device = Literal["cpu", "cuda"]
GB = 1e9
LIBRARIES: Mapping[Device, int] = {"cpu": 510_000_000, "cuda": 0}
"""resident bytes of torch, transformers, TRL and PEFT as a forked child has them, and of what their first step leaves (80 MB:
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
_HEAP_WASTE = 1.1
"""resident over requested bytes of smaller blocks that stay (measured: 1.05 for layer norms, 1.26 full, 1.43 a prefix)"""
_LOST = 1.75
"""blocks of an output's size that a frozen layer's output, an update's and its scaled copy leave behind once they are added:
torch asks for aligned memory, and glibc (measured: 2.36) then looks for more than a freed block of the same size can offer, so
that they do not serve the next layer (measured: 1.4 to 1.9)"""
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""bytes per weight: 4 bits, a scale in 8 bits per 64 weights, a scale of scales per 256 of those"""
_LOADING = 1.0
"""share of the stored bytes that stays mapped beside the copy while a model is loaded into another precision"""


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
    return int(_HEAP_WASTE * requested + lost) if heap else int(requested)


def logits(shape: Shape, work: Work, stage: StageName) -> int:
    """Bytes of the language-model head's tiles; a reward model has a head of one number."""
    if stage in ("reward", "task"):
        return 0
    width = 4 if work.device == "cpu" else 2
    tokens = min(HEAD_TOKENS[work.device], max(1, int(work.tokens * work.learned)))
    return _TILES[work.device] * tokens * min(HEAD_VOCABULARY, shape.vocabulary) * width


# -- stages -----------------------------------------------------------------------------------------------------


def soft_tokens(method: AnyMethod) -> int:
    """Positions that a soft prompt takes in each text."""
    return int(getattr(method, "length", 0))


def training(shape: Shape, method: AnyMethod, stage: StageName, work: Work) -> Memory:
    """Peak of training `method` in `stage`: AdamW in float32."""
    row = METHODS[method.name]
    work = replace(work, longest=work.longest + soft_tokens(method))
    count = trained(shape, method, stage)
    base = weights(shape, device=work.device, quantised=row.quantised, whole=not row.adapter)
    base += 4 * count if row.adapter else 0
    if row.quantised:  # one matrix at a time is taken back to full precision
        base += 4 * max((linear.inputs * linear.outputs for linear in shape.linears()), default=0)
    if work.device == "cuda" and not row.adapter:
        base += 2 * shape.parameters  # autocast keeps bfloat16 copies of float32 weights through a step
    head = logits(shape, work, stage)
    held = activations(shape, method, work, stage)
    gradients = 4 * count
    if not work.accumulated:  # gradients grow while activations shrink: only the larger counts
        gradients = max(0, gradients - held - head)
    # A tied embedding's gradient comes once from the head and once from the input.
    gradients += 4 * shape.vocabulary * shape.hidden if method.name == "full" and stage != "reward" else 0
    return Memory(LIBRARIES[work.device], base, gradients, 8 * count, held, head)


def passing(shape: Shape, device: Device, tokens: int) -> int:
    """Bytes alive inside one block of a forward pass without gradients."""
    width = 4 if device == "cpu" else 2
    return tokens * width * (3 * shape.inner * shape.active + 4 * shape.hidden)


def key_value_cache(shape: Shape, device: Device, tokens: int) -> int:
    """Bytes of the keys and values of `tokens` positions in all layers."""
    return tokens * shape.layers * 2 * shape.keys * (4 if device == "cpu" else 2)


def answering(shape: Shape, device: Device, *, rows: int, prompt: int, new: int, quantised: bool = False) -> Memory:
    """Peak of writing `rows` answers of `new` tokens at once.  The cache is copied as it grows, a layer at a time."""
    cache = key_value_cache(shape, device, rows * (prompt + new))
    cache += 2 * cache // shape.layers
    waste = _HEAP_WASTE if device == "cpu" else 1.0
    held = int(waste * passing(shape, device, rows * prompt))
    head = 2 * 4 * rows * shape.vocabulary
    return Memory(LIBRARIES[device], _loaded(shape, device, quantised), activations=held, logits=head, cache=int(waste * cache))


ANSWERED: Mapping[Device, int] = {"cpu": 32, "cuda": 64}
"""prompts that are answered at once, see `tasks.training.generate`"""
SCORED = {"cpu": (64, 2048), "cuda": (256, 32_768)}
"""rows and tokens of a batch of texts, see `tasks.training.score`"""
_HEAD_ROWS = 256


def scoring(shape: Shape, device: Device, *, longest: int, head: bool = True, quantised: bool = False) -> Memory:
    """Peak of reading texts of up to `longest` tokens; `head`: with log-probabilities, else with rewards."""
    tokens = max(SCORED[device][1], longest)
    width = 4 if device == "cpu" else 2
    words = shape.vocabulary * (tokens * width + 3 * 4 * _HEAD_ROWS) if head else 0
    waste = _HEAP_WASTE if device == "cpu" else 1.0
    held = int(waste * passing(shape, device, tokens))
    return Memory(LIBRARIES[device], _loaded(shape, device, quantised), activations=held, logits=words)


def merging(shape: Shape, device: Device, *, longest: int) -> Memory:
    """Peak of merging and of comparing the logits of one prompt: old and new, and three copies of each in float64."""
    words = longest * shape.vocabulary * (2 * 4 + 5 * 8)
    changed = 4 * sum(linear.inputs * linear.outputs for linear in shape.plain_linears())
    base = _loaded(shape, device, False) + (changed if device == "cpu" else 0)  # a merged matrix is a copy of a mapped one
    return Memory(LIBRARIES["cpu"], base, activations=passing(shape, device, longest), logits=words)


def _loaded(shape: Shape, device: Device, quantised: bool) -> int:
    """Weights in use; while they are loaded, a file of another precision is mapped beside its copy."""
    held = weights(shape, device=device, quantised=quantised)
    return held if device != "cpu" or shape.stored == 4 * shape.parameters else held + int(_LOADING * shape.stored)


@dataclass(frozen=True)
class Role:
    """One of PPO's models."""

    name: str
    memory: Memory
    shares_base: bool = False
    """it lives on the policy's base, switched on and off"""


ROLLOUT_ROWS = 4
"""answers written at once, for each that is learned from at once: without gradients they need less"""
_SAMPLED = 4 + 3 * 8
"""bytes per word and answer while a token is drawn: its logit in float32, and in float64 as a number, a probability and a sum"""
_SPOKEN = 3
"""float32 copies of an answer token's logits in an update: themselves, their gradient and a temporary; a tile's worth is not
saved, because the entropy wants them whole"""


def rollout(shape: Shape, work: Work, *, new: int, written: int, quantised: bool) -> Memory:
    """Peak of sampling `written` answers of `new` tokens at once by the policy itself, beside everything that lives on."""
    prompt = max(1, work.longest - new)
    told = answering(shape, work.device, rows=written, prompt=prompt, new=new, quantised=quantised)
    return Memory(activations=told.activations, logits=_SAMPLED * written * shape.vocabulary, cache=told.cache)


def ppo_roles(
    shape: Shape, method: AnyMethod, work: Work, *, new: int, written: int | None = None, judge: int | None = None
) -> list[Role]:
    """Policy, value, reward and reference of PPO with `work` in hand and `new` tokens per answer; together they are the peak.

    On one base: value and reward are adapters with a head of one number, the reference is a frozen copy of the policy's.  A
    method without adapters has four models.  The policy's row has what only one role at a time needs: the larger of sampling
    `written` answers and of the policy's update, which needs more than the value model's.  `judge`: bytes of a reward model
    beside the base; None: it shares it.
    """
    row = METHODS[method.name]
    own, scalar = 4 * trained(shape, method, "ppo"), 4 * trained(shape, method, "reward")
    base = weights(shape, device=work.device, quantised=row.quantised)
    shared = row.adapter
    spoken = _SPOKEN * 4 * work.rows * new * shape.vocabulary
    update = replace(training(shape, method, "ppo", replace(work, accumulated=True)), logits=spoken)
    sampled = rollout(shape, work, new=new, written=written or ROLLOUT_ROWS * work.rows, quantised=row.quantised)
    learns = update.activations + update.logits > sampled.total
    moment = Memory(activations=update.activations, logits=update.logits) if learns else sampled
    policy = replace(update, activations=moment.activations, logits=moment.logits, cache=moment.cache)
    value = Memory(weights=scalar if shared else base, gradients=scalar, optimiser=2 * scalar)
    reward = judge if judge is not None else scalar if shared else base
    return [
        Role("policy", policy),
        Role("value", value, shared),
        Role("reward", Memory(weights=reward), shared and judge is None),
        Role("reference", Memory(weights=own if shared else base), shared),
    ]


def ppo(shape: Shape, method: AnyMethod, work: Work, *, new: int, written: int | None = None, judge: int | None = None) -> Memory:
    """Peak of PPO: its roles together, see `ppo_roles`."""
    return _sum([role.memory for role in ppo_roles(shape, method, work, new=new, written=written, judge=judge)])


def group(
    shape: Shape, method: AnyMethod, stage: StageName, work: Work, *, new: int, written: int, judge: int = 0, pulls: bool = True
) -> Memory:
    """Peak of GRPO and RLOO: the policy, a copy of what it trains if it `pulls`, and `judge` bytes of a reward model beside."""
    update = training(shape, method, stage, work)
    sampled = rollout(shape, work, new=new, written=written, quantised=METHODS[method.name].quantised)
    beside = judge + (4 * trained(shape, method, stage) if pulls else 0)
    learns = update.activations + update.logits > sampled.total
    moment = update if learns else replace(
        update, activations=sampled.activations, logits=sampled.logits, cache=sampled.cache
    )  # fmt: skip
    return replace(moment, weights=moment.weights + beside)


def _sum(parts: Sequence[Memory]) -> Memory:
    return Memory(**{name: sum(getattr(part, name) for part in parts) for name in vars(Memory())})


def largest(need: Callable[[int], int], limit: int, most: int, share: int) -> int | None:
    """The largest micro-batch up to `most` that divides `share` and whose `need(rows)` is within `limit`; None if none is."""
    return next((rows for rows in range(min(most, share), 0, -1) if share % rows == 0 and need(rows) <= limit), None)


# -- the machine ------------------------------------------------------------------------------------------------


def free_memory() -> int:
    """Bytes of main memory that are free for a new process here, within the control group's limit."""
    words = Path("/proc/meminfo").read_text().split()
    free = int(words[words.index("MemAvailable:") + 1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
        stat = (group / "memory.stat").read_text().split()
    except (OSError, ValueError):
        return free
    reclaimable = int(stat[stat.index("inactive_file") + 1])
    return free if limit == "max" else min(free, int(limit) - used + reclaimable)


def resident() -> int:
    """Bytes of main memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- time -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """How fast this machine is, and how that is known."""

    flops: float
    """multiplications and additions per second that training reaches"""
    source: str
    known: Mapping[tuple[str, str, str], float] = field(default_factory=dict[tuple[str, str, str], float])
    """(base, stage, method) -> tokens per second measured in earlier artifacts"""


_REACHED = 0.4
"""share of a large matrix product's speed that a training step reaches: SmolLM2-135M under LoRA, 105 tokens/s where a product ran
at 130 GFLOP/s, is 0.44; one measurement, rounded down"""


def matmul_rate(size: int = 1024, repeats: int = 3) -> float:
    """Operations per second of a float32 matrix product on this CPU, the best of `repeats`."""
    import time

    import numpy as np

    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        _ = a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def here() -> Rate:
    """The rate of this machine's CPU from a small matrix product."""
    return Rate(_REACHED * matmul_rate(), "a matrix product on this CPU")


_MORE_PASSES: Mapping[str, float] = {"dpo": 1.0, "kto": 2.0}
"""forward passes beside the one that is learned from: the reference's, and KTO's of answers to other prompts"""


def flops_per_token(shape: Shape, method: AnyMethod, stage: StageName, longest: int, *, checkpointing: bool) -> float:
    """Operations per token: 2 per weight forward, 2 for the gradient of activations, 2 for that of trained matrices.

    The passes of references and the recomputation of checkpointing are forward passes more; attention is 4 per pair of
    positions and width, halved by causality.
    """
    active = shape.parameters - shape.count(lambda t: ".experts." in t.name) * (1 - shape.active / max(1, shape.experts))
    if re.search("reward|task", stage):
        active -= shape.vocabulary * shape.hidden
    forward = 2 * active + 2 * shape.layers * longest * shape.queries
    whole = 2 * min(active, trained(shape, method, stage))
    backward = 0.0 if method.name == "head" else forward
    again = _MORE_PASSES.get(stage, 0.0) + (1.0 if checkpointing and METHODS[method.name].checkpointing else 0.0)
    return forward * (1 + again) + backward + whole


def online_flops(
    shape: Shape, method: AnyMethod, stage: StageName, *, prompt: float, new: int, updates: int, checkpointing: bool, judged: bool
) -> float:
    """Operations per token of an answer, whose prompt has `prompt` tokens: writing it, being told of it, learning from it.

    Writing reads every weight to multiply few, about a third of the rate of training.  Told: once by each of policy, reference
    and, for PPO, value model; `judged`: by a reward model.
    """
    whole = (prompt + new) / new
    forward = 2 * shape.parameters
    told = {"ppo": 3, "grpo": 2, "rloo": 2}[stage] + judged
    learned = flops_per_token(shape, method, "sft", int(prompt + new), checkpointing=checkpointing)
    return 3 * forward + whole * (told * forward + updates * learned * (2 if stage == "ppo" else 1))
