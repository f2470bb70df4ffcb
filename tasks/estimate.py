"""Peak memory of each stage before it runs, put together from `tasks.memory`.  Imports no torch; bytes.

On a CPU the peak is that of the child's resident memory, on a GPU that of torch's allocator.  The child decides by the same
functions how it cuts its batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tasks.memory import HEAP_WASTE, LIBRARIES, Device, Memory, Work, activations, key_value_cache, logits, passing, weights
from tasks.methods import METHODS, AnyMethod, StageName
from tasks.shapes import Shape, trained

_LOADING = 1.0
"""share of the stored bytes that stays mapped beside the copy while a model is loaded into another precision"""


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


def answering(shape: Shape, device: Device, *, rows: int, prompt: int, new: int, quantised: bool = False) -> Memory:
    """Peak of writing `rows` answers of `new` tokens at once.  The cache is copied as it grows, a layer at a time."""
    cache = key_value_cache(shape, device, rows * (prompt + new))
    cache += 2 * cache // shape.layers
    waste = HEAP_WASTE if device == "cpu" else 1.0
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
    waste = HEAP_WASTE if device == "cpu" else 1.0
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
