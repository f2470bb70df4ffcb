"""What may be trained on top of what, and merged: decided when a plan is loaded, and again when a stage starts.

One rule: the first forward pass of a stage is exactly the policy it starts from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tasks.core.errors import SpecError
from tasks.methods import METHODS, AnyMethod, StageName, check_vision
from tasks.vllm_format import of_model

_AT_THE_START = ("dropout", "ratio", "init", "text", "encoder", "hidden")
"""fields that decide how weights start or learn, or what made them and is dropped"""
NO_BIASES = (
    "cohere", "cohere2", "deepseek_v3", "exaone4", "gemma", "gemma2", "gemma3_text", "longt5", "mistral", "mixtral", "mpt", "mt5",
    "olmo", "olmo2", "olmo3", "phi3", "qwen3", "stablelm", "switch_transformers", "t5", "umt5",
)  # fmt: skip
"""families whose linear layers have no biases and whose config cannot say otherwise"""


def follow(
    quantised: bool, last: str | None, method: AnyMethod, *, same: bool, config: Mapping[str, Any] | None = None
) -> Literal["continue", "fresh"]:
    """How `method` trains on top of a policy: go on with its last adapter, or start on the policy with that merged.

    `quantised`: the policy's base is in 4 bits.  `last`: method of its last adapter, None where it has none.  `same`: that
    adapter has this method and shape.  `config`: the base's config.json, where it is known.  Raises SpecError where neither would
    start exactly at that policy.
    """
    row = METHODS[method.name]
    if last and same:
        return "continue"
    if last and (why := _unmergeable(last, config)):
        raise SpecError(
            f"method {method.name}: the policy was trained with {last}, which cannot be merged ({why}), so only "
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
    return row.adapter and _unmergeable(method.name, config) is None


def _unmergeable(method: str, config: Mapping[str, Any] | None) -> str | None:
    if method == "bitfit" and config and config.get("model_type") in NO_BIASES:
        return f"linear layers of {config['model_type']} have no biases, and its config has no switch for them"
    return METHODS[method].keeps if METHODS[method].merges_into is None else None


def check_merge(*methods: AnyMethod, config: Mapping[str, Any] | None = None) -> None:
    """Raise SpecError if the adapters of one of `methods` cannot be merged into the model with this config.json."""
    for method in methods:
        if why := _unmergeable(method.name, config):
            able = ", ".join(name for name, other in METHODS.items() if other.merges_into and name != method.name)
            raise SpecError(
                f"{method.name} cannot be merged: {why}; leave merge out, and the policy is measured and released as an "
                f"adapter, or use one of {able}"
            )


_DECODERS: dict[StageName, str] = {
    "pretrain": "its trainer packs texts for a decoder",
    "reward": "a reward model scores a text at the last token a decoder reads",
    **dict.fromkeys(("dpo", "kto", "orpo"), "its trainer compares answers within one text that a decoder reads"),
    **dict.fromkeys(("grpo", "rloo", "ppo"), "its answers are rewarded within one text that a decoder reads"),
    "task": "a task head sits on an encoder or a decoder",
}
"""stages that cannot train an encoder-decoder model, and why"""


def check_seq2seq(stage: StageName) -> None:
    """Raise SpecError if `stage` cannot train an encoder-decoder model."""
    if stage in _DECODERS:
        raise SpecError(
            f"{stage}: the base is an encoder-decoder model, and {_DECODERS[stage]}; use another base, or a plan of SFT alone, "
            "without pretrain, reward and policy"
        )


_SIGHTLESS: tuple[StageName, ...] = ("kto", "orpo", "grpo", "rloo", "ppo")
"""stages that read and compare text alone"""


def check_sight(stage: StageName) -> None:
    """Raise SpecError if `stage` cannot train a vision-language model."""
    if stage in _SIGHTLESS:
        raise SpecError(
            f"{stage}: the base is a vision-language model, and {stage} reads text alone; use policy.algorithm: dpo, or a base "
            "of text alone"
        )


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""fields of a config.json that say how many experts a model has"""


def check_model(stage: StageName, method: AnyMethod, config: Mapping[str, Any] | None) -> None:
    """Raise SpecError if `stage` cannot train the model with this config.json by `method`; without one nothing is known."""
    if not config:
        return
    family = config.get("model_type", "this model")
    if config.get("is_encoder_decoder"):
        check_seq2seq(stage)
        if "encoder-decoder" not in METHODS[method.name].architectures:
            raise SpecError(f"method {method.name}: it trains no encoder-decoder model such as {family}; use full or lora")
    if method.name in ("moe_experts", "moe_router") and not any(config.get(name) for name in _EXPERTS):
        raise SpecError(f"method {method.name}: {family} is no mixture of experts; use full or lora")
    if "vision_config" in config:
        check_sight(stage)
    check_vision(method, sees="vision_config" in config)


def check_served(methods: Sequence[AnyMethod], config: Mapping[str, Any] | None) -> None:
    """Raise SpecError if vLLM could not write the answers of a policy trained by the last of `methods`, the others before it.

    `config`: the base's config.json, where it is known.
    """
    if problems := list(of_model(config or {})):
        raise SpecError(f"engine vllm: {problems[0]}; use engine: transformers")
    last: AnyMethod | None = None
    for method in methods:
        if last and METHODS[last.name].adapter and METHODS[method.name].adapter and not same_shape(last, method):
            raise SpecError(
                f"engine vllm: the {method.name} adapter would lie on the {last.name} adapter of the stage before it, of another "
                "shape, and vLLM puts none below the one that it serves; give both stages one method of one shape, or use "
                "engine: transformers"
            )
        last = method


def check_follow(before: AnyMethod, after: AnyMethod, config: Mapping[str, Any] | None = None) -> None:
    """Raise SpecError if `after` cannot train on top of a policy that `before` trained; `config`: the base's, where known."""
    row = METHODS[before.name]
    follow(row.quantised, before.name if row.adapter else None, after, same=same_shape(before, after), config=config)
