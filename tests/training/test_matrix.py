"""Every method through every stage on tiny models: what moves and what stays bit-equal, start, reload, merge, resume.

A method's line in TRAINS names what it trains; everything else of the model, tensor by tensor, must not change.
"""

import re
import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import write_rows

from tasks.core.contract import Execution, Metrics, Run
from tasks.core.errors import SpecError
from tasks.core.files import tree
from tasks.merge import MergeSpec
from tasks.methods import METHODS
from tasks.policy import read_record
from tasks.preference import DpoSpec
from tasks.train import RewardSpec, SftSpec
from tasks.training.__main__ import HARMLESS
from tasks.training.adapters import start
from tasks.training.methods.table import BUILDERS
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    *(pytest.mark.filterwarnings(f"ignore:{said}") for said in HARMLESS),
]
SPECS = {"sft": SftSpec, "reward": RewardSpec, "dpo": DpoSpec}
LOW_RANK = r"\.lora_[AB]\."
SOFT = r"^prompt_encoder\.|\.prefix_states\."
TRAINS = {
    "full": r"",
    "head": r"(?!)",  # a language model keeps its head; a reward model's is looked at apart
    "bottleneck": r"\.bottleneck_",
    "lora": LOW_RANK,
    "qlora": LOW_RANK,
    "dora": r"\.lora_(A|B|magnitude_vector)\.",
    "lora_plus": LOW_RANK,
    "rslora": LOW_RANK,
    "pissa": LOW_RANK,
    "olora": LOW_RANK,
    "loftq": LOW_RANK,
    "prompt_tuning": SOFT,
    "p_tuning": SOFT,
    "prefix_tuning": SOFT,
    "p_tuning_v2": SOFT,
    "ia3": r"\.ia3_l\.",
    "bitfit": r"\.bitfit_",
    "layer_norm": r"\.ln_tuning_layers\.",
    "moe_experts": r"\.mlp\.experts\.",
    "moe_router": r"\.mlp\.gate\.",
}
"""method -> names of the parameters it trains, and no others"""
RATE = {
    "full": 1e-2,
    "moe_experts": 1e-2,
    "ia3": 1e-1,
    "prompt_tuning": 1e-1,
    "moe_router": 1e-1,
    "layer_norm": 3e-2,
    "lora_plus": 2e-3,
}
SFT = [name for name in METHODS if "sft" in METHODS[name].learning_rate]
DENSE = [name for name in SFT if not name.startswith("moe")]
MODELS = {
    "llama": DENSE,
    "gpt2": [
        "full",
        "lora",
        "pissa",
        "bottleneck",
        "prompt_tuning",
        "prefix_tuning",
        "p_tuning_v2",
        "ia3",
        "bitfit",
        "layer_norm",
    ],
    "opt": ["full", "lora", "dora", "olora", "bottleneck", "p_tuning", "prefix_tuning", "ia3", "bitfit", "layer_norm"],
    "mixtral": [
        "full",
        "lora",
        "bottleneck",
        "prompt_tuning",
        "p_tuning_v2",
        "bitfit",
        "layer_norm",
        "moe_experts",
        "moe_router",
    ],
}
MODELS["t5"] = DENSE
CASES = [(kind, method) for kind, methods in MODELS.items() for method in methods]


@dataclass
class Trained:
    """A finished stage, and the model that it trained."""

    out: Path
    metrics: Metrics
    start: dict[str, torch.Tensor]
    model: Any

    @property
    def moved(self) -> set[str]:
        return {name for name, p in _tensors(self.model) if not torch.equal(p, self.start[name])}


def _tensors(model):
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers()


class Matrix:
    """Trains each (model, method, stage) once."""

    def __init__(self, root: Path, shop) -> None:
        self.root, self.models = root, root / "models"
        self._made: dict[tuple[str, ...], Trained] = {}
        for name in ("inst", "pref"):  # eight rows and a batch of eight: every step sees the same batch
            folder = shop.instructions if name == "inst" else shop.preferences
            from tasks.training.data import read_rows

            write_rows(root / name, "train", read_rows(folder, "train", 8))
            write_rows(root / name, "heldout", read_rows(folder, "heldout", 2))
        self.prompts = shop.prompts

    def base(self, kind: str) -> Path:
        place = self.root / kind
        if not place.exists():
            source = tiny.write_model(self.root / f"{kind}-source", kind=kind)
            tiny.write_policy(place, self.models, source, name=kind)
        return place

    def spec(self, job: str, method: str, **more):
        rate = RATE.get(method, 1e-2) / (1 if job == "sft" else 10)
        given = {"method": tiny.METHOD[method], "max_steps": 4, "global_batch": 8, "learning_rate": rate, "warmup": 0, **more}
        return SPECS[job].model_validate(given)

    def run(self, job: str, spec, policy: Path, work: Path, **execution) -> tuple[Path, Metrics]:
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        data = self.root / ("inst" if job == "sft" else "pref")
        inputs = {"policy": policy, "prompts": self.prompts} if job == "merge" else {"policy": policy, "data": data}
        run = Run(work, self.models, Execution(device="cpu", **execution))
        return out, import_module(f"tasks.training.{job}").run(spec, inputs, out, run)

    def trained(self, kind: str, method: str, job: str = "sft") -> Trained:
        if (kind, method, job) not in self._made:
            parent = self.base(kind) if job == "sft" or method == "head" else self.trained(kind, method).out
            module = import_module(f"tasks.training.{job}")
            real, seen = module.start, []

            def start(*given):
                begin = real(*given)
                seen.append((begin.model, {name: p.detach().clone() for name, p in _tensors(begin.model)}))
                return begin

            module.start = start
            try:
                out, metrics = self.run(job, self.spec(job, method), parent, self.root / f"{kind}-{method}-{job}")
            finally:
                module.start = real
            self._made[kind, method, job] = Trained(out, metrics, seen[0][1], seen[0][0])
        return self._made[kind, method, job]

    def load(self, policy: Path, **how):
        return load(policy, Run(self.root, self.models, Execution(device="cpu")), **how).model.eval()


@pytest.fixture(scope="module")
def matrix(shop, tmp_path_factory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("matrix"), shop)


def logits(model) -> torch.Tensor:
    """Of one text; a soft prompt's own positions left out."""
    ids = torch.arange(3, 40)[None]
    given = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **given).logits[:, -37:]


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
PLACES = {
    **dict.fromkeys(("lora", "qlora", "dora", "lora_plus", "rslora", "pissa", "olora", "loftq", "bitfit"), LINEAR),
    "ia3": ("k_proj", "v_proj", "down_proj"),
    "layer_norm": NORMS,
    "bottleneck": ("o_proj", "down_proj", *NORMS),
}
"""method -> modules of the tiny Llama that hold what it trains, in both layers (and the last norm, which is in none)"""
LORA = 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64))
OUTPUTS = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
COUNT = {
    "full": 320 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32,
    **dict.fromkeys(("lora", "qlora", "lora_plus", "rslora", "pissa", "olora", "loftq"), LORA),
    "dora": LORA + OUTPUTS,
    "bitfit": OUTPUTS,
    "ia3": 2 * (16 + 16 + 64),
    "layer_norm": 5 * 32,
    "bottleneck": 2 * 2 * (32 * 4 + 4 + 4 * 32 + 32) + 5 * 32,
    "prompt_tuning": 5 * 32,
    "p_tuning": 5 * 32 + (32 * 16 + 16) + (16 * 16 + 16) + (16 * 32 + 32),
    "prefix_tuning": 5 * 16 + (16 * 16 + 16) + (16 * 2 * 2 * 16 + 2 * 2 * 16),
    "p_tuning_v2": 5 * 2 * 2 * 16,
}
"""method -> weights it trains on the tiny Llama: 2 layers, width 32, inner 64, keys and values 16, 320 words; by hand"""


@pytest.mark.parametrize("method", DENSE)
def test_as_many_weights_are_trained_as_the_papers_formula_says_and_in_the_right_places(matrix, method):
    done = matrix.trained("llama", method)
    assert done.metrics["trainable_parameters"] == COUNT[method]
    if method in PLACES:
        owners = {re.split(r"\.(?:base_layer\.)?(?:lora|bitfit|ia3|ln_tuning|bottleneck)_", name)[0] for name in done.moved}
        layers = {f"layers.{i}" for i in range(2)}
        wanted = {(layer, module) for module in PLACES[method] for layer in (layers if module != "norm" else {"model"})}
        found = {(next((x for x in layers if x in name), "model"), name.rpartition(".")[2]) for name in owners}
        assert found == wanted


def test_every_method_has_a_builder_and_a_line_here():
    assert BUILDERS.keys() == METHODS.keys() == TRAINS.keys()
    assert {method for _, method in CASES} == set(SFT)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_sft_moves_what_the_method_trains_and_nothing_else(matrix, kind, method):
    done = matrix.trained(kind, method)
    wanted = {name for name in done.start if re.search(TRAINS[method], name) and ".inv_freq" not in name}
    if method == "full":
        wanted = {name for name, _ in done.model.named_parameters(remove_duplicate=False)}
    assert wanted
    assert done.moved == wanted
    assert done.metrics["last_loss"] < done.metrics["first_loss"]
    assert done.metrics["trainable_parameters"] == sum(p.numel() for name, p in done.model.named_parameters() if name in wanted)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_what_was_saved_answers_as_what_was_trained(matrix, kind, method):
    done = matrix.trained(kind, method)
    again = matrix.load(done.out)
    assert (logits(again) - logits(done.model)).abs().max() < 1e-5
    assert (logits(again) - logits(matrix.load(matrix.base(kind)))).abs().max() > 1e-3  # and not as the base does


@pytest.mark.parametrize(("kind", "method"), [case for case in CASES if METHODS[case[1]].adapter])
def test_switching_the_adapter_off_gives_the_base_bit_for_bit(matrix, kind, method):
    model = matrix.load(matrix.trained(kind, method).out)
    base = matrix.load(matrix.base(kind), quantised=METHODS[method].quantised)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))


@pytest.mark.parametrize(("kind", "method"), [case for case in CASES if METHODS[case[1]].adapter])
def test_what_merges_gives_equal_logits_and_what_does_not_is_refused(matrix, tmp_path, kind, method):
    done = matrix.trained(kind, method)
    if METHODS[method].merges_into is None or (kind in ("mixtral", "t5") and method == "bitfit"):  # their layers can have no bias
        with pytest.raises(SpecError, match=r"cannot be merged|has no switch for the biases"):
            matrix.run("merge", MergeSpec(), done.out, tmp_path)
        return
    out, certificate = matrix.run("merge", MergeSpec(), done.out, tmp_path)
    assert (logits(matrix.load(out)) - logits(matrix.load(done.out))).abs().max() < 1e-4
    assert certificate["max_logit_distance"] < 1e-4 < certificate["adapter_effect"]


@pytest.mark.parametrize("method", SFT)
def test_dpo_starts_at_the_sft_policy_and_trains_the_same_weights(matrix, method):
    kind = "mixtral" if method.startswith("moe") else "llama"
    sft, done = matrix.trained(kind, method), matrix.trained(kind, method, "dpo")
    row = METHODS[method]
    assert done.metrics["start"] == ("continue" if row.adapter else "full")
    assert done.metrics["first_step_log_ratio"] < 1e-3
    assert done.metrics["last_loss"] < done.metrics["first_loss"]
    assert done.moved == {name for name, p in done.model.named_parameters(remove_duplicate=False) if p.requires_grad}
    assert all(re.search(TRAINS[method], name) for name in done.moved)
    assert read_record(done.out).adapters == (["0-sft"] if row.adapter else [])
    assert (logits(matrix.load(done.out)) - logits(done.model)).abs().max() < 1e-5
    assert (logits(matrix.load(done.out)) - logits(matrix.load(sft.out))).abs().max() > 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_model_trains_its_head_and_the_methods_weights(matrix, method):
    kind = "mixtral" if method.startswith("moe") else "llama"
    done = matrix.trained(kind, method, "reward")
    heads = {name for name in done.moved if re.search(r"(^|\.)score\.", name)}
    assert heads
    assert all(re.search(TRAINS[method], name) for name in done.moved - heads)
    assert bool(done.moved - heads) == (method != "head")
    assert done.metrics["last_loss"] < done.metrics["first_loss"]
    assert (logits_of_reward(matrix.load(done.out)) - logits_of_reward(done.model)).abs().max() < 1e-5


def logits_of_reward(model) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.arange(3, 40)[None]
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@pytest.mark.parametrize("method", SFT)
def test_a_resumed_run_leaves_the_bytes_of_the_unbroken_one(matrix, tmp_path, method):
    base = matrix.base("mixtral" if method.startswith("moe") else "llama")
    given = matrix.spec("sft", method)
    whole, _ = matrix.run("sft", given, base, tmp_path, checkpoint_every=2)
    payload = {file.relative_to(whole): file.read_bytes() for file in tree(whole)}
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = matrix.run("sft", given, base, tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert {file.relative_to(resumed): file.read_bytes() for file in tree(resumed)} == payload


@pytest.mark.parametrize("method", SFT)
def test_gradient_checkpointing_changes_nothing(matrix, tmp_path, method):
    kind = "mixtral" if method.startswith("moe") else "llama"
    out, _ = matrix.run("sft", matrix.spec("sft", method), matrix.base(kind), tmp_path, gradient_checkpointing=True)
    assert (logits(matrix.load(out)) - logits(matrix.load(matrix.trained(kind, method).out))).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["dora", "pissa", "olora", "loftq"])
def test_fused_experts_take_a_plain_update_only_and_the_rest_of_the_model_any(matrix, tmp_path, method):
    with pytest.raises(SpecError, match="holds its experts as fused tensors"):
        matrix.run("sft", matrix.spec("sft", method), matrix.base("mixtral"), tmp_path)
    named = {**tiny.METHOD[method], "targets": ["q_proj", "v_proj"]}
    given = {"method": named, "max_steps": 4, "global_batch": 8, "learning_rate": 1e-2, "warmup": 0}
    _, metrics = matrix.run("sft", SftSpec.model_validate(given), matrix.base("mixtral"), tmp_path)
    assert metrics["last_loss"] < metrics["first_loss"]


def test_the_inner_activation_of_fused_experts_cannot_be_scaled(matrix, tmp_path):
    with pytest.raises(SpecError, match=r"the experts of mixtral are fused tensors, .* use lora"):
        matrix.run("sft", matrix.spec("sft", "ia3"), matrix.base("mixtral"), tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_loftq_starts_nearer_to_the_unquantised_model_than_qlora(matrix, tmp_path, kind):
    """What the method is for; measured on the logits before the first step."""
    base, far = logits(matrix.load(matrix.base(kind))), {}
    for method in ("qlora", "loftq"):
        begin = start(matrix.base(kind), matrix.spec("sft", method), Run(tmp_path, matrix.models, Execution(device="cpu")))
        far[method] = float((logits(begin.model) - base).abs().mean())
    assert far["loftq"] < 0.9 * far["qlora"]


def test_olora_is_refused_where_weights_are_stored_transposed(matrix, tmp_path):
    with pytest.raises(SpecError, match=r"gpt2 stores its weights transposed, .* use pissa"):
        matrix.run("sft", matrix.spec("sft", "olora"), matrix.base("gpt2"), tmp_path)
