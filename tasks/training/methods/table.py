"""Method name -> how it is built; the names are those of `tasks.methods.METHODS`."""

from tasks.training.methods import light, low_rank, parts
from tasks.training.methods.builder import Builder

BUILDERS: dict[str, Builder] = {
    "full": parts.FULL,
    "lora": low_rank.PLAIN,
    "qlora": low_rank.PLAIN,
    "dora": low_rank.PLAIN,
    "lora_plus": low_rank.PLUS,
    "rslora": low_rank.PLAIN,
    "pissa": low_rank.PISSA,
    "olora": low_rank.OLORA,
    "loftq": low_rank.LOFTQ,
    "ia3": light.IA3,
    "layer_norm": light.LAYER_NORM,
    "moe_experts": parts.EXPERTS,
    "moe_router": parts.ROUTER,
}
