# pyright: basic
"""Load a policy or a reward model: from `model/` or the checked base, then its adapters, all but the last merged in memory.

Only safetensors, no remote code, no network.  What does not match the record is refused, never guessed at.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tasks.core.contract import Run
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.heads import FORMS, Head, read_head
from tasks.policy import (
    ADAPTERS,
    MODEL,
    PolicyRecord,
    Task,
    check_base,
    is_seq2seq,
    read_record,
    sees,
    template_digest,
    tokenizer_digest,
)
from tasks.training.head_models import headed, padding, seeing_segments, unwrapped
from tasks.training.methods.known import make_all_known
from tasks.training.pooling import pool_by_mask
from tasks.training.template import render
from tasks.training.vision_models import processor_of, vision_model, vision_scorer

WEIGHTS = "adapter_model.safetensors"
READS_WHOLE = "reads_whole"
"""attribute of a reward model that was trained elsewhere: it knows texts as they are tokenised in one go"""
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
transformers_logging.disable_progress_bar()  # a child's stdout is for its log and its progress events
make_all_known()
PEFT_TASKS = {
    "policy": "CAUSAL_LM",
    "reward": "SEQ_CLS",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}


@dataclass(frozen=True)
class Loaded:
    """A model ready for use, with what belongs to it."""

    model: Any
    """a transformers model, or a PeftModel whose active adapter is `default`"""
    tokenizer: PreTrainedTokenizerBase
    record: PolicyRecord
    source: Path
    """folder that the weights under the adapters and the tokenizer came from"""
    device: torch.device
    processor: Any = None
    """of a vision-language model: tokenizer and image processor; None for a model of text alone"""

    def replace(self, model: Any) -> "Loaded":  # noqa: ANN401
        """The same with another model: this one wrapped, for example."""
        return replace(self, model=model)


def load(
    policy: Path,
    run: Run,
    *,
    task: Task | None = None,
    trainable: bool = False,
    merged: bool = False,
    quantised: bool | None = None,
    seed: int = 0,
    head: Head | None = None,
) -> Loaded:
    """Load the artifact in folder `policy`.

    `task="reward"` on a policy puts a scalar head, fresh under `seed`, on its body, `head` that of a task, which a finished model
    brings itself.  `merged` merges the last adapter too (the base is de-quantised first).  `quantised` holds the base in 4 bits
    whatever the record says.  `trainable` leaves the last adapter, or without one every weight, requiring gradients; else nothing
    does and dropout is off.
    """
    record = read_record(policy)
    if quantised:
        record = record.model_copy(update={"quantization": "nf4"})
    task = head.kind if head else task or record.task
    _check_task(policy, record, task)
    device = torch_device(run)
    source = checked_source(policy, record, run)
    processor = processor_of(source)
    tokenizer = processor.tokenizer if processor else AutoTokenizer.from_pretrained(source, **_LOCAL)
    tokenizer.chat_template = tokenizer.chat_template or getattr(processor, "chat_template", None)
    torch.manual_seed(seed)
    head = head or (read_head(policy) if task in FORMS else None)
    model = bare(source, record, task, device, keep_float32=trainable and (merged or not record.adapters), head=head)
    if record.quantization and merged and record.adapters:
        model = model.dequantize().to(torch.float32)
    model = _with_adapters(model, policy, record, task, merged=merged, trainable=trainable)
    if task != "policy":
        model.config.pad_token_id = padding(tokenizer) if head else pad_id(tokenizer)
    if record.task == "reward" and not record.chain:
        setattr(model, READS_WHOLE, True)
    if not trainable:
        model.requires_grad_(False)
    model.train(trainable)
    return Loaded(model if record.quantization else model.to(device), tokenizer, record, source, device, processor)


def _check_task(policy: Path, record: PolicyRecord, task: Task) -> None:
    if task != record.task and record.task != "policy":
        what = "reward model" if record.task == "reward" else f"model for {record.task.replace('_', ' ')}"
        raise DataError(f"{policy}: a {what}, where a {task} is needed; swap the inputs?")


def _with_adapters(model: Any, policy: Path, record: PolicyRecord, task: Task, *, merged: bool, trainable: bool) -> Any:  # noqa: ANN401
    """`model` under the adapters of `policy`: all but the last merged into it, and the last too if `merged`."""
    folders = [policy / ADAPTERS / name for name in record.adapters]
    for folder in folders if merged else folders[:-1]:
        if record.quantization and not merged:
            raise SpecError(
                f"{policy}: {len(folders)} adapters on a 4-bit base would have to be merged into it; add a merge stage"
            )
        model = unwrapped(with_adapter(model, folder, None).merge_and_unload())
    if folders and not merged:
        return seeing_segments(with_adapter(model, folders[-1], PEFT_TASKS[task], trainable=trainable))
    if trainable:
        model.requires_grad_(True)
    return model


def torch_device(run: Run) -> torch.device:
    """The device that the run's execution asks for.  Raises MachineError for a GPU that is not there."""
    wanted = run.execution.device
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise MachineError("execution.device is cuda, but torch sees no GPU here; use auto or cpu?")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def encodes(model: Any) -> bool:  # noqa: ANN401  transformers and PEFT models
    """Whether an encoder reads and a decoder writes."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def peft_task_of(model: Any, peft_task: str | None) -> str | None:  # noqa: ANN401
    """`peft_task` as PEFT calls it for `model`."""
    return "SEQ_2_SEQ_LM" if peft_task == "CAUSAL_LM" and encodes(model) else peft_task


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token for padding that no text ends with, which matters to a reward model.

    It scores a text at its last token that is not padding *by id*, so with pad = eos a text that ends in eos would be scored
    one token early.  Causal attention and the mask make the choice irrelevant to everything else.
    """
    ends = {*stop_ids(tokenizer), *tail_ids(tokenizer)}
    candidates: list[Any] = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *range(len(ends) + 1)]
    return next(token for token in candidates if token is not None and token not in ends)


def tail_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the template puts after an assistant's words: stop token, newline, whatever it is."""
    word = "answer"
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": word}]
    text = render(tokenizer, messages)
    return tokenizer.encode(text[text.rindex(word) + len(word) :], add_special_tokens=False)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: Any = None) -> set[int]:  # noqa: ANN401
    """Tokens that end a turn: the tokenizer's eos and those of the generation config."""
    config = getattr(model, "generation_config", None)
    more = getattr(config, "eos_token_id", None)
    tokens: list[Any] = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    return {int(token) for token in tokens if token is not None}


def quantization() -> BitsAndBytesConfig:
    """NF4 with double quantisation (QLoRA, arXiv:2305.14314); heads stay as they are."""
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=["lm_head", "score", "classifier", "qa_outputs", "pooler", "pooler.dense"],
    )  # fmt: skip


def checked_source(policy: Path, record: PolicyRecord, run: Run) -> Path:
    """The folder of weights and tokenizer, checked against the record."""
    source = policy / MODEL if (policy / MODEL).is_dir() else check_base(run.models, record.base)
    for what, found, wanted in (
        ("tokenizer", tokenizer_digest(source), record.tokenizer),
        *([("chat template", template_digest(source), record.template)] if record.template else []),
    ):
        if found != wanted:
            raise DataError(
                f"{source}: its {what} has sha256 {found[:12]}, the policy was trained with {wanted[:12]}; restore the file, "
                "or train again with this one"
            )
    for name in record.adapters:
        if not (policy / ADAPTERS / name / WEIGHTS).is_file():
            raise DataError(f"{policy / ADAPTERS / name}: no {WEIGHTS} here, but the record's chain needs it")
    return source


def bare(
    source: Path,
    record: PolicyRecord,
    task: Task,
    device: torch.device,
    *,
    keep_float32: bool = False,
    head: Head | None = None,
) -> Any:  # noqa: ANN401
    """The model of `source` without any adapter, as the record wants it held; under `head`, if one is given."""
    extra: dict[str, Any] = {"dtype": torch.float32 if device.type == "cpu" or keep_float32 else torch.bfloat16}
    if record.quantization == "nf4":
        extra |= {"quantization_config": quantization(), "device_map": {"": str(device)}}
    if head:
        model = headed(source, head.kind, head.labels, **_LOCAL, **extra)
    elif sees(source):
        model = vision_model(source, **extra) if task == "policy" else vision_scorer(source, **extra)
    elif task == "policy":
        kind = AutoModelForSeq2SeqLM if is_seq2seq(source) else AutoModelForCausalLM
        model = kind.from_pretrained(source, use_safetensors=True, **_LOCAL, **extra)
    else:
        kind = AutoModelForSequenceClassification
        model = pool_by_mask(kind.from_pretrained(source, use_safetensors=True, num_labels=1, **_LOCAL, **extra))
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # In eval mode it would repack its weights for AVX512-BF16 and round the scales: other numbers than in training,
            # and other numbers than on a machine without that instruction.
            module.support_avx512bf16_for_cpu = False
    return model


def with_adapter(model: Any, folder: Path, peft_task: str | None, *, trainable: bool = False) -> Any:  # noqa: ANN401
    """`model` with the adapter of `folder` as `default`; a head that the folder lacks stays as it is in `model`."""
    config = PeftConfig.from_pretrained(str(folder))
    headless = config.task_type != "SEQ_CLS" and peft_task == "SEQ_CLS"
    by_hand = headless or (trainable and config.is_prompt_learning)  # PEFT loads a soft prompt for use only
    config.task_type = peft_task_of(model, peft_task)
    config.inference_mode = not trainable
    config.base_model_name_or_path = None  # a name for people; the record says which base it is
    if not by_hand:
        return PeftModel.from_pretrained(model, folder, config=config, is_trainable=trainable)
    score = "base_model.score" if config.is_prompt_learning else "base_model.model.score"
    head = {f"{score}.{name}": value.detach().clone() for name, value in model.score.named_parameters()} if headless else {}
    wrapped = get_peft_model(model, config)
    unknown = set_peft_model_state_dict(wrapped, load_file(folder / WEIGHTS) | head).unexpected_keys
    unknown = [name for name in unknown if name != "prompt_embeddings"]  # a soft prompt's: set all the same
    if unknown:
        raise DataError(f"{folder}: {unknown[0]} fits nowhere in this model; was the adapter made for another base?")
    return wrapped
