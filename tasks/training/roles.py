# pyright: basic
"""PPO's four models on one base: policy and value model are trained adapters, reference and reward model frozen ones.

A role is taken with `with roles.policy():` and the like.  A backward pass belongs inside: outside, PEFT has switched the
gradients of other adapters off, and recomputed activations would be those of another role.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor

from tasks.core.contract import Run
from tasks.core.errors import DataError, SpecError
from tasks.core.files import file_digest, tree
from tasks.core.spec import canonical, sha256
from tasks.policy import ADAPTERS, MODEL, PolicyRecord, read_record
from tasks.training.adapters import METHOD, Start
from tasks.training.batches import padded
from tasks.training.data import Encoder, Messages, scored_ids
from tasks.training.lean import lean
from tasks.training.models import WEIGHTS, checked_source, load
from tasks.training.objective import of_tokens
from tasks.training.reward import score_texts

LOW_RANK = ("lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora", "loftq")
"""methods whose adapters can lie side by side on one base: PEFT takes one family at a time"""
POLICY, VALUE, REFERENCE, REWARD = "default", "value", "reference", "reward"
"""names of the adapters; the policy's is the one that is written"""
_SCORE = "base_model.model.score."


class Clearance(NamedTuple):
    """How scores of the reward model are normalised."""

    mean: float
    std: float


class Said(NamedTuple):
    """Answers under their prompts as a batch: rows end together, so that all answers lie in the last R columns."""

    ids_BT: Tensor
    mask_BT: Tensor
    """1 on true tokens, from the lengths; never by comparing with the padding token, which may be the stop token"""
    answer_BR: Tensor
    """1 on the tokens of the answer, the stop token included"""
    place_BR: Tensor
    """how many tokens of the answer come before"""

    @property
    def position_BT(self) -> Tensor:
        """Positions of the tokens."""
        return (self.mask_BT.cumsum(1) - 1).clamp(min=0)

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int, device: torch.device) -> "Said":
        """The batch of `answers` to `prompts`."""
        ids_BT, mask_BT = padded([[*p, *a] for p, a in zip(prompts, answers, strict=True)], pad, device, left=True)
        width = max(map(len, answers))
        length_B = torch.tensor([len(answer) for answer in answers], device=device)
        place_BR = torch.arange(width, device=device)[None] - (width - length_B[:, None])
        return cls(ids_BT, mask_BT, (place_BR >= 0).float(), place_BR)


class Roles(torch.nn.Module):
    """The models on one base, and whatever reward model does not fit on it."""

    def __init__(self, begin: Start, *, checkpointing: bool) -> None:
        """The policy of `begin`, and its frozen reference; the other roles are added by `add_value` and `add_reward`."""
        super().__init__()
        self.model = begin.model
        self.device = begin.loaded.device
        self.value_head = torch.nn.Linear(self.model.config.get_text_config().hidden_size, 1, device=self.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.encoder = Encoder(begin.loaded.tokenizer, begin.model)
        self._checkpointing = checkpointing
        self._trained = [POLICY]
        self._flags: list[tuple[Tensor, bool]] | None = None
        self._groups: list[list[Tensor]] = []
        self._reference: str | None = None
        if begin.how == "continue":
            _add(self.model, begin.parent / ADAPTERS / str(begin.record.chain[-1].adapter), REFERENCE)
            self._reference = REFERENCE
        if checkpointing:
            self.model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        lean(self.model)

    def add_value(self, reward: "SharedReward | None", clearance: Clearance | None, weight: float) -> str:
        """A value model: it starts as `reward`, in the units of the normalised and weighted score, or fresh; says how."""
        if reward is None:
            self.model.add_adapter(VALUE, _like(self.model.peft_config[POLICY]))
            how = "a fresh adapter under a zero head"
        else:
            _add(self.model, reward.folder, VALUE)
            scale = weight / (clearance.std if clearance else 1.0)
            with torch.no_grad():
                self.value_head.weight.copy_(reward.head.weight * scale)
                self.value_head.bias.copy_(reward.head.bias * scale - (clearance.mean if clearance else 0.0) * scale)
            how = "the reward model's adapter and head, in units of the normalised score"
        self._trained, self._flags = [POLICY, VALUE], None
        _without_dropout(self)
        lean(self.model)  # layers that only another role's adapter has
        self._settle()
        return how

    @contextmanager
    def _as(self, name: str | None, *, learns: bool = False) -> Iterator[None]:
        """Answer as the adapter `name`, None: as the base; `learns`: in training mode, which recomputing activations asks for."""
        self.model.train(learns and self._checkpointing)
        if name is not None:
            self.model.set_adapter(name, inference_mode=True)
            self._settle()
        with self.model.disable_adapter() if name is None else nullcontext():
            yield
        if name is None:
            self._settle()

    def _settle(self) -> None:
        """Have exactly what is trained require gradients, whichever adapter is active: PEFT has just changed that."""
        if self._flags is None:
            self.requires_grad_(False)
            self.model.set_requires_grad(self._trained, True)
            self.value_head.requires_grad_(True)
            self._flags = [(p, p.requires_grad) for p in self.parameters() if p.is_floating_point()]
        for parameter, wanted in self._flags:
            parameter.requires_grad_(wanted)

    def adapters(self) -> tuple[str, str]:
        """Names of the trained adapters: the policy's and the value model's."""
        return POLICY, VALUE

    def trained(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights of the policy, and of the value model with its head."""
        if not self._groups:
            for adapter in self.adapters():
                with self.alone(adapter):
                    self._groups.append([p for p in self.model.parameters() if p.requires_grad])
            self._groups[1] += self.value_head.parameters()
        return self._groups[0], self._groups[1]

    @contextmanager
    def alone(self, adapter: str) -> Iterator[None]:
        """Have no weight but those of `adapter` require gradients."""
        self.requires_grad_(False)
        self.model.set_requires_grad(adapter, True)
        yield
        self._settle()

    def policy(self, *, learns: bool = False) -> Any:  # noqa: ANN401  a context
        """The policy, for a forward pass and its backward pass."""
        return self._as(POLICY, learns=learns)

    def value(self, *, learns: bool = False) -> Any:  # noqa: ANN401
        """The value model."""
        return self._as(VALUE, learns=learns)

    def reference(self) -> Any:  # noqa: ANN401
        """The SFT policy: its frozen adapter, or the base with adapters off where the policy's is a fresh one."""
        return self._as(self._reference)

    def reward(self) -> Any:  # noqa: ANN401
        """The reward model that lies on this base."""
        return self._as(REWARD)

    def log_probs(self, said: Said, *, temperature: float, silent: int = 0, entropy: bool = False) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the answers' tokens as the present role would sample them, and entropies; (B, R) each, 0 outside.

        silent: so many tokens come before a stop token may.  entropy: else its tensor is 0.  The head sees the positions before
        the answers' tokens only, padding left out.  N: tokens of all answers.
        """
        there_BR = said.answer_BR.bool()
        width = there_BR.shape[1]
        picked = lambda head, given: (given[0][:, -width - 1 : -1][there_BR][None], *given[1:])  # noqa: E731
        base = self.model.get_base_model()
        hook = base.get_output_embeddings().register_forward_pre_hook(picked)
        try:
            with self._precision():
                logits_1NV = base(**_given(said), logits_to_keep=width + 1).logits.float()
        finally:
            hook.remove()
        # In place: nobody else looks at the logits, which are by far the largest tensor here.
        if temperature != 1:
            logits_1NV.div_(temperature)
        if silent:
            early_N = (said.place_BR < silent)[there_BR].nonzero()[:, 0]
            stops_W = torch.tensor(sorted(self.encoder.stops), device=self.device)
            least = logits_1NV.new_tensor(torch.finfo(torch.float32).min / 2)
            logits_1NV.index_put_((torch.zeros_like(early_N)[:1, None], early_N[:, None], stops_W[None]), least)
        logits_NV = logits_1NV[0]
        token_N = said.ids_BT[:, -width:][there_BR]
        logp_N, spread_N = of_tokens(logits_NV, token_N, entropy=entropy)
        empty_BR = torch.zeros_like(said.answer_BR)
        return empty_BR.masked_scatter(there_BR, logp_N), empty_BR.masked_scatter(there_BR, spread_N) if entropy else empty_BR

    def values(self, said: Said) -> Tensor:
        """What the present role expects of the rest, before each token of the answers; (B, R), 0 outside."""
        width = said.answer_BR.shape[1]
        return self.value_head(self.hidden(**_given(said))[:, -width - 1 : -1].float())[..., 0] * said.answer_BR

    def hidden(self, **given: Any) -> Tensor:  # noqa: ANN401
        """What the head would read in the present role; (B, T, H)."""
        with self._precision():
            return self.model.get_base_model().base_model(**given).last_hidden_state

    def _precision(self) -> Any:  # noqa: ANN401
        """bfloat16 on a GPU, the same in rollout and update; a CPU counts in float32."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


class SharedReward(torch.nn.Module):
    """The reward model as an adapter on the policy's base; called like the model it stands for."""

    def __init__(self, roles: Roles, policy: Path) -> None:
        """Add the last adapter of `policy`, a reward model, to `roles`; its head is a linear layer here."""
        super().__init__()
        self.folder = policy / ADAPTERS / read_record(policy).adapters[-1]
        self.encoder = roles.encoder
        self._roles = [roles]  # in a list: its weights are not this module's
        weights = _add(roles.model, self.folder, REWARD)
        self.head = torch.nn.Linear(weights[f"{_SCORE}weight"].shape[1], 1, device=roles.device).requires_grad_(False)
        self.head.weight.data.copy_(weights[f"{_SCORE}weight"])
        self.head.bias.data.copy_(weights.get(f"{_SCORE}bias", torch.zeros(1)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> Any:  # noqa: ANN401
        """Scores of texts padded on the right, as `logits`; (B, 1)."""
        hidden_BTH = self._roles[0].hidden(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        rows_B = torch.arange(len(hidden_BTH), device=hidden_BTH.device)
        return SimpleNamespace(logits=self.head(hidden_BTH[rows_B, attention_mask.sum(1) - 1].float()))

    def scores(self, texts: Sequence[tuple[Messages, str]], batch: int) -> list[float]:
        """The score of each (prompt, answer)."""
        with self._roles[0].reward():
            return score_texts(self, self.encoder, [scored_ids(self.encoder, *text) for text in texts], batch=batch)


class OwnReward:
    """A reward model that is loaded beside the policy's base, with a tokenizer of its own."""

    def __init__(self, policy: Path, run: Run) -> None:
        """Load the reward model of `policy`."""
        loaded = load(policy, run, task="reward")
        self.model = loaded.model
        self.encoder = Encoder(loaded.tokenizer, loaded.model)

    def scores(self, texts: Sequence[tuple[Messages, str]], batch: int) -> list[float]:
        """The score of each (prompt, answer)."""
        return score_texts(self.model, self.encoder, [scored_ids(self.encoder, *text) for text in texts], batch=batch)


def reward_model(roles: Roles, begin: Start, policy: Path, run: Run) -> SharedReward | OwnReward:
    """The reward model of `policy`, on the base of `roles` where it lies on the same one; the log says which and why."""
    record = read_record(policy)
    if record.task != "reward":
        raise DataError(f"{policy}: no reward model but a {record.task}; swap the inputs?")
    if why := _apart(begin, policy, record, run):
        run.log(f"reward model: loaded beside the policy's base, because {why}")
        return OwnReward(policy, run)
    run.log("reward model: an adapter on the policy's base")
    return SharedReward(roles, policy)


def _apart(begin: Start, policy: Path, record: PolicyRecord, run: Run) -> str | None:
    """Why the reward model `policy` cannot be an adapter on the base that `begin` trains on; None where it can."""
    if not record.adapters or record.chain[-1].adapter is None:
        return "it is a whole model"
    method = json.loads((policy / ADAPTERS / record.adapters[-1] / METHOD).read_text())["name"]
    if method not in LOW_RANK:
        return f"its method {method} and the policy's {begin.method.name} cannot lie on one base"
    parent = read_record(begin.parent)
    below = parent.adapters[:-1] if begin.how == "continue" else parent.adapters
    for what, one, other in (
        ("base", _ground(begin.parent, parent), _ground(policy, record)),
        ("precision", begin.record.quantization, record.quantization),
        ("tokenizer", parent.tokenizer, record.tokenizer),
        ("chat template", parent.template, record.template),
        ("stack of merged adapters", _merged(begin.parent, below), _merged(policy, record.adapters[:-1])),
    ):
        if one != other:
            return f"its {what} is not that of the policy"
    checked_source(policy, record, run)
    return None


def _ground(policy: Path, record: PolicyRecord) -> str:
    """What the weights below all adapters are, as a digest."""
    if not (policy / MODEL).is_dir():
        return sha256(canonical({**record.base.files}))
    return sha256(canonical({file.name: file_digest(file) for file in tree(policy / MODEL) if file.suffix == ".safetensors"}))


def _merged(policy: Path, names: Sequence[str]) -> list[str]:
    """Digests of adapters' weights, in order."""
    return [file_digest(policy / ADAPTERS / name / WEIGHTS) for name in names]


def _add(model: Any, folder: Path, name: str) -> dict[str, Tensor]:  # noqa: ANN401
    """Add the adapter of `folder` as `name`, frozen; returns its weights, those of a scalar head included."""
    config: Any = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save = "CAUSAL_LM", None  # a reward model's head is taken care of by the caller
    config.base_model_name_or_path, config.inference_mode = None, True
    model.add_adapter(name, config)
    weights = load_file(folder / WEIGHTS)
    body = {key: value for key, value in weights.items() if not key.startswith(_SCORE)}
    found = set_peft_model_state_dict(model, body, adapter_name=name)
    missing = [key for key in found.missing_keys if f".{name}." in key]
    if unknown := [*found.unexpected_keys, *missing]:
        raise DataError(f"{folder}: {unknown[0]} does not fit this model; was the adapter made for another base?")
    return weights


def _like(config: Any) -> Any:  # noqa: ANN401
    """A PEFT configuration of the same shape, for a fresh adapter that changes nothing."""
    same = deepcopy(config)
    same.inference_mode, same.init_lora_weights = False, True
    return same


def _without_dropout(model: torch.nn.Module) -> None:
    """Switch dropout off: a ratio of two passes through the same weights must be 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _given(said: Said) -> dict[str, Any]:
    return {"input_ids": said.ids_BT, "attention_mask": said.mask_BT, "position_ids": said.position_BT, "use_cache": False}


def check_roles(begin: Start) -> None:
    """Raise SpecError where the policy cannot have the other roles beside it."""
    if begin.method.name not in LOW_RANK:
        raise SpecError(f"ppo: policy, value and reward model are low-rank adapters on one base, and {begin.method.name} is none")
    if begin.loaded.processor is not None:
        raise SpecError("ppo: the base reads images, and PPO practises on text alone; use dpo, kto or orpo there")
