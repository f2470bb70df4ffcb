# pyright: basic
"""A new head on a frozen body: an adapter whose only weights are those of the head, kept as PEFT keeps `modules_to_save`."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import DUMMY_TARGET_MODULES

from tasks.core.errors import SpecError
from tasks.training.methods.tuner import HEADS, OwnType


@dataclass
class HeadConfig(PeftConfig):
    """What PEFT keeps of a head."""

    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "names of the head's modules; score, classifier or qa_outputs if None"}
    )
    target_modules: ClassVar[str] = DUMMY_TARGET_MODULES
    """PEFT's word for: no module of the body"""

    def __post_init__(self) -> None:
        """Set the type."""
        super().__post_init__()
        self.peft_type = OwnType.HEAD_TUNING  # pyright: ignore[reportAttributeAccessIssue]


def config(model: Any, method: Any, task_type: str) -> HeadConfig:  # noqa: ANN401
    """PEFT's configuration of `method`."""
    return HeadConfig(task_type=task_type)  # pyright: ignore[reportArgumentType]


class HeadModel(BaseTuner):
    """A frozen model and a trained head for each adapter."""

    prefix = "head_tuning_"
    tuner_layer_cls = BaseTunerLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:  # noqa: ANN401
        wanted = peft_config.modules_to_save or HEADS
        names = [name for name, _ in self.model.named_modules()]
        there = [head for head in dict.fromkeys(wanted) if any(name == head or name.endswith(f".{head}") for name in names)]
        if not there:
            raise SpecError(
                f"method head: {type(self.model).__name__} has no head called {' or '.join(wanted)}; use it for reward or task, "
                "and lora for sft and dpo"
            )
        peft_config.modules_to_save = there
        return peft_config

    def _create_and_replace(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        raise NotImplementedError("a head replaces no module of the body")

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; where it was active, the first of the others becomes so."""
        left = [name for name in self.active_adapters if name != adapter_name]
        left = left or sorted(name for name in self.peft_config if name != adapter_name)
        super().delete_adapter(adapter_name)
        if left:  # PEFT looks for it in layers of the body, of which there are none
            self.set_adapter(left[0], inference_mode=self.peft_config[left[0]].inference_mode)
