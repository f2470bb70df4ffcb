"""Fine-tuning methods: how weights are made trainable.  A spec and a row in METHODS each; imports no torch.

A new method is a spec and a row here, a builder in `tasks/training/methods`, and a line in `tests/training/test_matrix.py`, which
then trains, saves, reloads, merges and resumes it.  What may follow what: `tasks/chain.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from tasks.core.errors import SpecError
from tasks.core.spec import Spec

StageName: TypeAlias = Literal["pretrain", "sft", "reward", "dpo", "kto", "orpo", "grpo", "rloo", "ppo", "task"]
"""what can be trained: plain text, answers, a reward head, a policy (by preferences, then by rewards), a task head"""
STAGES: tuple[StageName, ...] = get_args(StageName)
Architecture: TypeAlias = Literal["decoder", "encoder", "encoder-decoder"]


class Full(Spec):
    """Train every weight."""

    name: Literal["full"] = "full"
    """the method"""


class Head(Spec):
    """Train a new head on frozen features."""

    name: Literal["head"] = "head"
    """the method"""


class Bottleneck(Spec):
    """Train two small modules per layer, after attention and after the feed-forward part, and the layer norms (Houlsby)."""

    name: Literal["bottleneck"] = "bottleneck"
    """the method"""
    size: PositiveInt = 64
    """inner width of a module"""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """between down and up"""
    norms: bool = True
    """train the layer norms too, as the paper does"""


class _LowRank(Spec):
    rank: PositiveInt = 16
    """inner dimension of each update"""
    alpha: PositiveFloat = 32.0
    """updates are scaled by alpha / rank"""
    dropout: Annotated[NonNegativeFloat, Field(lt=1)] = 0.0
    """share of an update's inputs zeroed in SFT; reward and DPO training switch it off"""
    targets: Literal["all-linear", "all-linear+vision"] | tuple[str, ...] = "all-linear"
    """module names that get an update; all-linear is every linear layer but the head.  The part of a vision-language model that
    sees is left alone, unless targets are all-linear+vision"""

    @field_validator("targets")
    @classmethod
    def _no_head(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not targets or "lm_head" in targets:
            raise ValueError(
                f"targets {targets!r}: the head cannot be a target (its loss kernel reads the plain weight); use all-linear"
            )
        return tuple(sorted(set(targets))) if isinstance(targets, tuple) else targets


class Lora(_LowRank):
    """Train a low-rank update of the linear layers, the rest frozen."""

    name: Literal["lora"] = "lora"
    """the method"""


class Qlora(_LowRank):
    """LoRA on a base held in 4 bits (NF4, double quantisation)."""

    name: Literal["qlora"] = "qlora"
    """the method"""


class Dora(_LowRank):
    """LoRA that trains direction and magnitude of each weight apart."""

    name: Literal["dora"] = "dora"
    """the method"""


class LoraPlus(_LowRank):
    """LoRA whose B learns faster than A."""

    name: Literal["lora_plus"] = "lora_plus"
    """the method"""
    ratio: PositiveFloat = 16.0
    """learning rate of B over that of A"""


class RsLora(_LowRank):
    """LoRA scaled by alpha / sqrt(rank), so that high ranks learn."""

    name: Literal["rslora"] = "rslora"
    """the method"""
    alpha: PositiveFloat = 16.0
    """updates are scaled by alpha / sqrt(rank)"""


class Pissa(_LowRank):
    """LoRA started from the principal singular vectors of each weight."""

    name: Literal["pissa"] = "pissa"
    """the method"""
    alpha: PositiveFloat = 16.0
    """updates are scaled by alpha / rank"""


class Olora(_LowRank):
    """LoRA started from the QR decomposition of each weight."""

    name: Literal["olora"] = "olora"
    """the method"""
    alpha: PositiveFloat = 16.0
    """updates are scaled by alpha / rank"""


class Loftq(_LowRank):
    """QLoRA whose update starts as what quantisation lost of each weight."""

    name: Literal["loftq"] = "loftq"
    """the method"""


class PromptTuning(Spec):
    """Train vectors put before the input's embeddings."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    """the method"""
    length: PositiveInt = 20
    """vectors"""
    init: Literal["vocabulary", "text", "random"] = "vocabulary"
    """start from embeddings of sampled words, from those of `text`, or from uniform noise"""
    text: str = "Answer the request well:"
    """for init text: repeated or cut to `length` tokens"""


class PTuning(Spec):
    """Train vectors put before the input's embeddings, computed by a small network that is dropped afterwards (v1)."""

    name: Literal["p_tuning"] = "p_tuning"
    """the method"""
    length: PositiveInt = 20
    """vectors"""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """the network"""
    hidden: PositiveInt = 128
    """its inner width"""


class PrefixTuning(Spec):
    """Train keys and values put before every layer's own, computed by an MLP that is dropped afterwards."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    """the method"""
    length: PositiveInt = 20
    """keys and values per layer"""
    hidden: PositiveInt = 512
    """inner width of the MLP"""


class PTuningV2(Spec):
    """Train keys and values put before every layer's own, directly."""

    name: Literal["p_tuning_v2"] = "p_tuning_v2"
    """the method"""
    length: PositiveInt = 20
    """keys and values per layer"""


class Ia3(Spec):
    """Train three scaling vectors per layer: keys, values, inner feed-forward activation."""

    name: Literal["ia3"] = "ia3"
    """the method"""


class BitFit(Spec):
    """Train the bias terms only; a model without any gets zero biases on its linear layers."""

    name: Literal["bitfit"] = "bitfit"
    """the method"""


class LayerNormTuning(Spec):
    """Train the layer norms only."""

    name: Literal["layer_norm"] = "layer_norm"
    """the method"""


class MoeExperts(Spec):
    """Train the experts of a mixture-of-experts model, and nothing else."""

    name: Literal["moe_experts"] = "moe_experts"
    """the method"""


class MoeRouter(Spec):
    """Train the router of a mixture-of-experts model, and nothing else."""

    name: Literal["moe_router"] = "moe_router"
    """the method"""


AnyMethod: TypeAlias = (
    Full | Head | Bottleneck | Lora | Qlora | Dora | LoraPlus | RsLora | Pissa | Olora | Loftq
    | PromptTuning | PTuning | PrefixTuning | PTuningV2 | Ia3 | BitFit | LayerNormTuning | MoeExperts | MoeRouter
)  # fmt: skip
Method: TypeAlias = Annotated[AnyMethod, Field(discriminator="name")]


@dataclass(frozen=True)
class MethodRow:
    """What the pipeline must know about a method beside its spec."""

    spec: type[Spec]
    meaning: str
    """one line for a table"""
    source: str
    """where it was published"""
    learning_rate: Mapping[StageName, float]
    """default per stage; a stage that is missing here is not supported"""
    quality: tuple[float, str]
    """published accuracy, or the nearest relative's, and what it rests on: where no comparison of one's own says otherwise"""
    merges_into: Literal["is the model", "base", "de-quantised base"] | None
    """what its weights can be added to, so that a plain model results"""
    keeps: str = ""
    """for one that merges into nothing: why, as half a sentence"""
    refuses: Mapping[StageName, str] = field(default_factory=dict[StageName, str])
    """why a stage is not supported"""
    architectures: tuple[Architecture, ...] = ("decoder", "encoder", "encoder-decoder")
    """models it works on"""
    quantised: bool = False
    """needs its base in 4 bits"""
    adapter: bool = True
    """kept in a folder of its own beside the base"""
    checkpointing: bool = True
    """works with gradient checkpointing"""

    def describe(self) -> dict[str, str]:
        """The row as a table shows it."""
        few = len(self.refuses) <= len(STAGES) / 2
        stages = f"all but {', '.join(self.refuses)}" if few else ", ".join(self.learning_rate)
        stages = stages if self.refuses else "all"
        rates = {stage: f"{rate:g}" for stage, rate in self.learning_rate.items()}
        shown = f"{rates.get('sft', rates['reward'])}" + (f", dpo {rates['dpo']}" if "dpo" in rates else "")
        return {
            "trains": self.meaning,
            "stages": stages,
            "learning rate": shown,
            "merges into": self.merges_into or "-",
            "source": self.source,
        }


def _aligned(rates: dict[StageName, float]) -> dict[StageName, float]:
    """`rates` with those of DPO's relatives: its own, but for ORPO, which imitates at the same time."""
    return {**rates, "kto": rates["dpo"], "orpo": rates["sft"] / 4}


def _sampled(rates: dict[StageName, float]) -> dict[StageName, float]:
    """`rates` with those of the stages that learn from their own answers: DPO's."""
    return {**rates, "grpo": rates["dpo"], "rloo": rates["dpo"]}


def _rates(sft: float, *, packs: bool = True, after: float | None = None) -> dict[StageName, float]:
    """Rates of every stage that trains on rows, from that of SFT; DPO's is a tenth.

    `after`: of the stages that find the network gone.
    """
    rest = after or sft
    rates = _aligned({"sft": sft, "reward": rest, "dpo": rest / 10, "task": sft})
    return {"pretrain": sft, **rates} if packs else rates


def _low_rank(sft: float) -> dict[StageName, float]:
    """The same, and of the stages that sample: PPO's policy, value and reward are such adapters on one base."""
    rates = _sampled(_rates(sft))
    return {**rates, "ppo": rates["dpo"]}


_NO_LM_HEAD = "it trains nothing but a new head, and a language model keeps its own"
_NO_LORA_HEAD: dict[StageName, str] = dict.fromkeys(("pretrain", "sft", "dpo", "kto", "orpo", "grpo", "rloo", "ppo"), _NO_LM_HEAD)
_NO_PPO: dict[StageName, str] = {"ppo": "policy, value and reward are low-rank adapters that share one base"}
_ON_ROWS: dict[StageName, str] = {
    **dict.fromkeys(("grpo", "rloo"), "the reference of its trainer would be another model than the SFT policy"),
    **_NO_PPO,
}
"""for methods that train on rows alone"""
_PACKED: dict[StageName, str] = {
    "pretrain": "a packed row holds several texts, and its vectors would stand before the first alone",
    **_ON_ROWS,
}
_SOFT = "its vectors are part of the input, not of a weight"
_PREFIX = "its keys and values belong to no token, so no weight yields them"

_BENCHMARK = "PEFT's public benchmark: Llama-3.2-3B, MetaMathQA -> GSM8K, 5,000 steps"

METHODS: dict[str, MethodRow] = {
    "full": MethodRow(
        Full,
        "every weight; the most memory, the reference for quality",
        "-",
        _sampled(_aligned({"pretrain": 2e-5, "sft": 2e-5, "reward": 1e-5, "dpo": 1e-6, "task": 2e-5})),
        quality=(0.472, _BENCHMARK),
        merges_into="is the model",
        refuses=_NO_PPO,
        adapter=False,
    ),
    "head": MethodRow(
        Head,
        "a new head on frozen features; a lower bound",
        "-",
        {"reward": 1e-3, "task": 1e-3},
        quality=(0.150, "a lower bound: features stay as they are"),
        merges_into=None,
        keeps="its head is no change of a weight",
        refuses=_NO_LORA_HEAD,
    ),
    "bottleneck": MethodRow(
        Bottleneck,
        "two small modules in each layer, and the layer norms",
        "arXiv:1902.00751",
        _rates(5e-4),
        quality=(0.450, "within 0.4 % of full on GLUE (arXiv:1902.00751)"),
        merges_into=None,
        keeps="its modules are not linear; they stay in the model and cost time in use",
        refuses=_ON_ROWS,
    ),
    "lora": MethodRow(
        Lora,
        "a low-rank update of each linear layer; about 1-3 % of the weights",
        "arXiv:2106.09685",
        _low_rank(2e-4),
        quality=(0.478, _BENCHMARK),
        merges_into="base",
    ),
    "qlora": MethodRow(
        Qlora,
        "LoRA on a base in 4 bits; the least memory, slower",
        "arXiv:2305.14314",
        _low_rank(2e-4),
        quality=(0.470, "as LoRA, within the error of its paper (arXiv:2305.14314)"),
        merges_into="de-quantised base",
        quantised=True,
    ),
    "dora": MethodRow(
        Dora,
        "as LoRA, with a magnitude of its own for each output",
        "arXiv:2402.09353",
        _low_rank(2e-4),
        quality=(0.469, _BENCHMARK),
        merges_into="base",
    ),
    "lora_plus": MethodRow(
        LoraPlus,
        "as LoRA; B learns 16 times as fast as A",
        "arXiv:2402.12354",
        _low_rank(5e-5),
        quality=(0.478, "as LoRA; its paper reports 1-2 % more (arXiv:2402.12354)"),
        merges_into="base",
    ),
    "rslora": MethodRow(
        RsLora,
        "as LoRA, scaled by alpha / sqrt(rank): for high ranks",
        "arXiv:2312.03732",
        _low_rank(1e-4),
        quality=(0.513, _BENCHMARK),
        merges_into="base",
    ),
    "pissa": MethodRow(
        Pissa,
        "as LoRA, started from the largest singular vectors of each weight",
        "arXiv:2404.02948",
        _rates(1e-4),
        quality=(0.475, "as LoRA (arXiv:2404.02948)"),
        merges_into="base",
        refuses=_ON_ROWS,
    ),
    "olora": MethodRow(
        Olora,
        "as LoRA, started from the QR decomposition of each weight",
        "arXiv:2406.01775",
        _rates(1e-4),
        quality=(0.470, "as LoRA (arXiv:2406.01775)"),
        merges_into="base",
        refuses=_ON_ROWS,
    ),
    "loftq": MethodRow(
        Loftq,
        "as QLoRA, started from what quantisation lost",
        "arXiv:2310.08659",
        _rates(2e-4),
        quality=(0.470, "as QLoRA (arXiv:2310.08659)"),
        merges_into="de-quantised base",
        quantised=True,
        refuses=_ON_ROWS,
    ),
    "prompt_tuning": MethodRow(
        PromptTuning,
        "vectors before the input; almost no weights, wants a large model",
        "arXiv:2104.08691",
        _rates(1e-2, packs=False),
        quality=(0.200, f"{_BENCHMARK} (0.057 to 0.343)"),
        merges_into=None,
        keeps=_SOFT,
        refuses=_PACKED,
    ),
    "p_tuning": MethodRow(
        PTuning,
        "vectors before the input, made by a network that is dropped afterwards",
        "arXiv:2103.10385",
        _rates(1e-3, packs=False, after=1e-2),
        quality=(0.350, _BENCHMARK),
        merges_into=None,
        keeps=_SOFT,
        refuses=_PACKED,
    ),
    "prefix_tuning": MethodRow(
        PrefixTuning,
        "keys and values before those of each layer, made by an MLP that is dropped afterwards",
        "arXiv:2101.00190",
        _rates(1e-3, packs=False, after=1e-2),
        quality=(0.301, f"{_BENCHMARK} (0.186 to 0.416)"),
        merges_into=None,
        keeps=_PREFIX,
        checkpointing=False,
        refuses=_PACKED,
    ),
    "p_tuning_v2": MethodRow(
        PTuningV2,
        "keys and values before those of each layer, trained directly",
        "arXiv:2110.07602",
        _rates(1e-2, packs=False),
        quality=(0.301, "as prefix tuning, without its MLP (arXiv:2110.07602)"),
        merges_into=None,
        keeps=_PREFIX,
        checkpointing=False,
        refuses=_PACKED,
    ),
    "ia3": MethodRow(
        Ia3,
        "three scaling vectors in each layer; far below 0.1 % of the weights",
        "arXiv:2205.05638",
        _rates(3e-3),
        quality=(0.383, f"{_BENCHMARK} (0.311 to 0.455)"),
        merges_into="base",
        refuses=_ON_ROWS,
    ),
    "bitfit": MethodRow(
        BitFit,
        "the biases; about 0.1 % of the weights",
        "arXiv:2106.10199",
        _rates(1e-3),
        quality=(0.321, _BENCHMARK),
        merges_into="base",
        refuses=_ON_ROWS,
    ),
    "layer_norm": MethodRow(
        LayerNormTuning,
        "the layer norms; a few thousand weights",
        "arXiv:2312.11420",
        _rates(1e-3),
        quality=(0.310, "as bias-only; its paper is on multimodal models (arXiv:2312.11420)"),
        merges_into="base",
        refuses=_ON_ROWS,
    ),
    "moe_experts": MethodRow(
        MoeExperts,
        "the experts of a mixture-of-experts model",
        "-",
        _aligned({"pretrain": 2e-5, "sft": 2e-5, "reward": 1e-5, "dpo": 1e-6, "task": 2e-5}),
        quality=(0.472, "as full"),
        merges_into="is the model",
        refuses=_ON_ROWS,
        adapter=False,
        architectures=("decoder",),
    ),
    "moe_router": MethodRow(
        MoeRouter,
        "the router of a mixture-of-experts model",
        "-",
        _aligned({"pretrain": 1e-4, "sft": 1e-4, "reward": 1e-4, "dpo": 1e-5, "task": 1e-4}),
        quality=(0.150, "a choice among what is there"),
        merges_into="is the model",
        refuses=_ON_ROWS,
        adapter=False,
        architectures=("decoder",),
    ),
}


def learning_rate(stage: StageName, method: AnyMethod) -> float:
    """The default of `method` in `stage`."""
    check_stage(stage, method)
    return METHODS[method.name].learning_rate[stage]


VLLM_METHODS = ("lora", "qlora", "lora_plus", "rslora")
"""what vLLM can take up while it runs, of the methods that learn from their own answers: those that rest as a plain LoRA"""
VISION_METHODS = ("full", "lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora")
"""what trains a vision-language model"""


def check_vision(method: AnyMethod, *, sees: bool) -> None:
    """Raise SpecError if `method` cannot train a model that `sees` images, or one that does not."""
    if not sees and getattr(method, "targets", None) == "all-linear+vision":
        raise SpecError("targets all-linear+vision: the base sees no images; use all-linear")
    if sees and method.name not in VISION_METHODS:
        raise SpecError(
            f"method {method.name}: a vision-language base is trained by {', '.join(VISION_METHODS)} only; use one of them, or a "
            "base of text alone"
        )


def check_stage(stage: StageName, method: AnyMethod) -> None:
    """Raise ValueError if `method` cannot train `stage`."""
    row = METHODS[method.name]
    if stage not in row.learning_rate:
        able = ", ".join(name for name, other in METHODS.items() if stage in other.learning_rate)
        raise ValueError(f"method {method.name} cannot train {stage}: {row.refuses[stage]}; use one of {able}")
