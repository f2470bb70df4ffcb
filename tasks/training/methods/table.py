"""Method name -> how it is built; the names are those of `tasks.methods.METHODS`."""

from tasks.training.methods import bitfit, bottleneck, head, light, low_rank, parts, soft_prompts
from tasks.training.methods.builder import Builder, peft

BUILDERS: dict[str, Builder] = {
    "full": parts.FULL,
    "head": Builder(peft(head.config)),
    "bottleneck": Builder(peft(bottleneck.config)),
    "lora": low_rank.PLAIN,
    "qlora": low_rank.PLAIN,
    "dora": low_rank.PLAIN,
    "lora_plus": low_rank.PLUS,
    "rslora": low_rank.PLAIN,
    "pissa": low_rank.PISSA,
    "olora": low_rank.OLORA,
    "loftq": low_rank.LOFTQ,
    "prompt_tuning": soft_prompts.PROMPT,
    "p_tuning": soft_prompts.ENCODED,
    "prefix_tuning": soft_prompts.PREFIX,
    "p_tuning_v2": soft_prompts.PREFIX,
    "ia3": light.IA3,
    "bitfit": Builder(peft(bitfit.config)),
    "layer_norm": light.LAYER_NORM,
    "moe_experts": parts.EXPERTS,
    "moe_router": parts.ROUTER,
}
