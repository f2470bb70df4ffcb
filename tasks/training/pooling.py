# pyright: basic
"""Where a sequence classifier over a decoder reads its score: at the last attended token, padding or soft prompt or not.

Transformers looks for the padding token instead, and cannot where a soft prompt turns tokens into embeddings: it would read the
score at the end of the padding.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


def pool_by_mask(model: Any) -> Any:  # noqa: ANN401
    """`model`, a decoder with a `score` head, scoring each row where its attention mask ends (its last token without a mask)."""
    model.forward = MethodType(_forward, model)
    return model


def _forward(
    self: Any,  # noqa: ANN401
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,  # noqa: ANN401
    inputs_embeds: Tensor | None = None,
    labels: Tensor | None = None,
    **more: Any,  # noqa: ANN401
) -> SequenceClassifierOutputWithPast:
    """Its own forward pass (PEFT looks at the names of these arguments), with the head at one position of a row only."""
    more["return_dict"] = True
    given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
    body = self.base_model(**given, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **more)
    hidden_BTH = body.last_hidden_state
    rows_B = torch.arange(len(hidden_BTH), device=hidden_BTH.device)
    after_B = torch.zeros_like(rows_B) if attention_mask is None else _padding_after(attention_mask).to(hidden_BTH.device)
    logits_BC = self.score(hidden_BTH[rows_B, hidden_BTH.shape[1] - 1 - after_B])
    loss = None if labels is None else ForSequenceClassificationLoss(labels, logits_BC, self.config)
    return SequenceClassifierOutputWithPast(
        loss=loss,
        logits=logits_BC,
        past_key_values=body.past_key_values,
        hidden_states=body.hidden_states,
        attentions=body.attentions,
    )


def _padding_after(mask_BT: Tensor) -> Tensor:
    """Number of positions after the last attended one of each row; (B,).  The mask may be longer than the input: a prefix's."""
    return mask_BT.flip(1).long().argmax(1)
