"""What may be trained on top of what, and merged: decided when a plan is loaded, and again when a stage starts.

One rule: the first forward pass of a stage is exactly the policy it starts from.
"""

from collections.abc import Mapping
from typing import Any, Literal

from tasks.core.errors import SpecError
from tasks.methods import METHODS, AnyMethod, StageName

_AT_THE_START = ("dropout", "ratio", "init", "text", "encoder", "hidden")
"""fields that decide how weights start or learn, or what made them and is dropped"""
NO_BIASES = (
    "cohere", "cohere2", "deepseek_v3", "exaone4", "gemma", "gemma2", "gemma3_text", "longt5", "mistral", "mixtral", "mpt", "mt5",
    "olmo", "olmo2", "olmo3", "phi3", "qwen3", "stablelm", "switch_transformers", "t5", "umt5",
)  # fmt: skip
"""families whose linear layers have no biases and whose config cannot say otherwise"""


def follow(quantised: bool, last: str | None, method: AnyMethod, *, same: bool) -> Literal["continue", "fresh"]:
    """How `method` trains on top of a policy: go on with its last adapter, or start on the policy with that merged.

    `quantised`: the policy's base is in 4 bits.  `last`: method of its last adapter, None where it has none.  `same`: that
    adapter has this method and shape.  Raises SpecError where neither would start exactly at that policy.
    """
    row = METHODS[method.name]
    if last and same:
        return "continue"
    if last and METHODS[last].merges_into is None:
        raise SpecError(
            f"method {method.name}: the policy was trained with {last}, which cannot be merged ({METHODS[last].keeps}), so only "
            f"{last} of the same shape can go on from there; use that, or train the policy with a method that merges"
        )
    if quantised and (last or not row.quantised):
        raise SpecError(
            f"method {method.name}: the policy's base is in 4 bits, and merging its adapter there would change the policy; use "
            f"{last or 'qlora'} with the same rank, alpha and targets, or merge the policy first"
        )
    if last and row.quantised:
        raise SpecError(
            f"method {method.name}: this policy was trained on an unquantised base, and quantising it now would change it; train "
            f"SFT with {method.name} of the same shape too, or merge the policy first"
        )
    return "fresh"


def same_shape(one: AnyMethod, other: AnyMethod) -> bool:
    """Whether a stage of the second can go on with an adapter of the first; how it starts and learns is no part of the shape."""
    return shape(one.model_dump()) == shape(other.model_dump())


def shape(method: Mapping[str, object]) -> dict[str, object]:
    """The fields of a method that still say something of the adapter it left.

    >>> shape({"name": "p_tuning", "length": 20, "encoder": "lstm", "hidden": 128})
    {'name': 'p_tuning', 'length': 20}
    """
    return {name: value for name, value in method.items() if name not in _AT_THE_START}


def merges(method: AnyMethod, config: Mapping[str, Any] | None = None) -> bool:
    """Whether `method` leaves an adapter that merges into the model with this config.json, as far as that is known."""
    row = METHODS[method.name]
    return row.adapter and row.merges_into is not None and _unmergeable(method, config) is None


def _unmergeable(method: AnyMethod, config: Mapping[str, Any] | None) -> str | None:
    if method.name == "bitfit" and config and config.get("model_type") in NO_BIASES:
        return f"linear layers of {config['model_type']} have no biases, and its config has no switch for them"
    return METHODS[method.name].keeps if METHODS[method.name].merges_into is None else None


def check_merge(*methods: AnyMethod, config: Mapping[str, Any] | None = None) -> None:
    """Raise SpecError if the adapters of one of `methods` cannot be merged into the model with this config.json."""
    for method in methods:
        if why := _unmergeable(method, config):
            able = ", ".join(name for name, other in METHODS.items() if other.merges_into and name != method.name)
            raise SpecError(
                f"{method.name} cannot be merged: {why}; leave merge out, and the policy is measured and released as an "
                f"adapter, or use one of {able}"
            )


_DECODERS: dict[StageName, str] = {
    "pretrain": "its trainer packs texts for a decoder",
    "reward": "a reward model scores a text at the last token a decoder reads",
    "dpo": "its trainer compares answers within one text that a decoder reads",
}
"""stages that cannot train an encoder-decoder model, and why"""


def check_seq2seq(stage: StageName) -> None:
    """Raise SpecError if `stage` cannot train an encoder-decoder model."""
    if stage in _DECODERS:
        raise SpecError(
            f"{stage}: the base is an encoder-decoder model, and {_DECODERS[stage]}; leave pretrain, reward and policy out of "
            "the plan (SFT, measuring, gates and release remain), or use a decoder"
        )
