"""Memory and time of each stage of a plan before it runs, and with a probe what they really are.

Nothing of torch is loaded here; a probe runs the stage's own job in a child.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from evals.scores import CHAMPION
from flows.champion import looked_up
from flows.explain import Explain, Step
from flows.pipeline import pipeline
from flows.plan import Plan, RewardModelPlan
from tasks import estimate, probe, speed
from tasks.algorithms import ALGORITHMS
from tasks.base import build_base
from tasks.core.contract import Run
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.core.provenance import provenance
from tasks.generate import AnswersSpec
from tasks.machine import free_gpu_memory, free_memory
from tasks.measure import RewardsSpec, ScoresSpec
from tasks.memory import Device, Memory, Work, weights
from tasks.merge import MergeSpec
from tasks.methods import METHODS
from tasks.policy import MODEL, Base, base_path, read_record
from tasks.ppo import PpoSpec
from tasks.probe import Measured
from tasks.rewarding import wants_model
from tasks.rollouts import OnlineSpec
from tasks.shapes import Shape, of_embedded, of_folder
from tasks.smollm import NAME, SHA256
from tasks.speed import Rate
from tasks.train import RowsSpec, TrainSpec
from tasks.workload import Reader, Tokens, measured, steps

_PROMPT = 256
"""tokens of a prompt where no curated prompts say how long they are"""


@dataclass(frozen=True)
class Row:
    """One stage."""

    stage: str
    state: str
    """built, missing, or waits"""
    memory: Memory
    limit: int
    """bytes this machine has for one such child"""
    rows: int | None
    """rows of a micro-batch, where the stage has one"""
    fitting: int | None
    """the largest micro-batch that fits; None where not even one row does, or the stage has none"""
    tokens: float | None
    """of the whole stage; None where nobody knows how many rows there are"""
    tokens_from: str
    seconds: float | None
    rate_from: str
    longest: int | None = None
    """tokens of the longest text of a training stage"""
    probed: Measured | None = None

    @property
    def fits(self) -> bool:
        """Whether the stage runs as asked."""
        return self.memory.total <= self.limit

    @property
    def error(self) -> float | None:
        """Estimated over measured peak, less one."""
        return self.memory.total / self.probed.peak - 1 if self.probed else None


def estimates(plan: Plan, *, run_probe: bool = False, log: Callable[[str], None] = lambda line: None) -> list[Row]:
    """A row for each stage of `plan` that takes memory; with `run_probe`, training stages are measured too."""
    explain = Explain(plan.workshop())
    pipeline(plan, explain, looked_up(plan, explain.workshop.store))
    here = _Here(plan, explain)
    rows = [row for step in explain.steps if (row := here.row(step))]
    return [here.probed(row, log) for row in rows] if run_probe else rows


class _Here:
    """What is known about a plan's model, data and machine."""

    def __init__(self, plan: Plan, explain: Explain) -> None:
        self._plan, self._steps = plan, {step.name: step for step in explain.steps}
        self._shop = explain.workshop
        self.device: Device
        self.device, self.limit = _machine(plan)

    # -- the model ----------------------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path | None:
        """Where the base's files lie, if they are here."""
        asked = self._plan.model.spec()
        if asked.source == "local":
            return self._plan.model.files()["source"]
        revision = f"git:{asked.revision}" if asked.revision else f"sha256:{SHA256}"
        folder = base_path(self._shop.models, Base(name=asked.model, revision=revision, files={}))
        return folder if (folder / "config.json").is_file() else None

    @cached_property
    def shape(self) -> Shape:
        """The base's."""
        if self.folder:
            return of_folder(self.folder)
        if self._plan.model.base == NAME:
            return of_embedded()
        raise SpecError(
            f"model.base: {self._plan.model.base} is not in the model cache, so its shape is not known; run "
            "`align rerun base PLAN` first, which brings it there"
        )

    @property
    def _judge(self) -> Shape:
        """The reward model's, as far as it is here; else the base's."""
        own = self._plan.reward
        folder = own.files().get("source") if isinstance(own, RewardModelPlan) else None
        return of_folder(folder) if folder else self.shape

    @cached_property
    def reader(self) -> Reader | None:
        """Its tokenizer and template, if they can be used here."""
        try:
            return Reader.of(self.folder) if self.folder else None
        except DataError:
            return None

    # -- rows ---------------------------------------------------------------------------------------------------

    def row(self, step: Step) -> Row | None:
        """The estimate of a stage, None for one that loads no model."""
        make = _ROWS.get(step.stage.name)
        return make(self, step) if make else None

    def train(self, step: Step) -> Row:
        """A stage that trains on rows which are there."""
        spec, execution = cast(RowsSpec, step.spec), self._plan.execution
        stage, texts = spec.stage, 2 if spec.stage in ("reward", "dpo", "orpo") else 1
        found = self._rows_of(step, spec)
        share = max(1, spec.global_batch // execution.processes)
        longest = spec.max_length if found is None or stage == "pretrain" else found.longest

        def need(work: Work) -> Memory:
            return estimate.training(self.shape, spec.method, stage, replace(work, texts=texts))

        memory, rows, fitting = self._cut(need, share, longest)
        tokens, said = _schedule(spec, found, texts)
        checkpointing = execution.gradient_checkpointing
        flops = speed.flops_per_token(self.shape, spec.method, stage, longest, checkpointing=checkpointing)
        seconds, rate = self._seconds(step, spec, tokens, flops)
        return Row(step.name, step.state, memory, self.limit, rows, fitting, tokens, said, seconds, rate, longest)

    def _rows_of(self, step: Step, spec: RowsSpec) -> Tokens | None:
        """What a stage learns from; of pairs KTO makes two rows each."""
        if spec.stage != "kto":
            split = "texts" if spec.stage == "pretrain" else "train"
            return self._texts(step, "data", split, spec.stage, spec.max_length)
        if self._plan.data.feedback:
            return self._texts(step, "data", "train", "feedback", spec.max_length)
        pairs = self._texts(step, "data", "train", "dpo", spec.max_length)
        return pairs and pairs._replace(rows=2 * pairs.rows, mean=pairs.mean / 2)

    def _cut(self, need: Callable[[Work], Memory], share: int, longest: int) -> tuple[Memory, int, int | None]:
        """Memory at the micro-batch that is asked for, that micro-batch, and the largest one that fits."""
        execution = self._plan.execution
        sizes = [n for n in range(min(execution.micro_batch or 8, share), 0, -1) if share % n == 0]

        def of(rows: int) -> Memory:
            return need(Work(self.device, rows, longest, 1, execution.gradient_checkpointing, rows < share))

        return of(sizes[0]), sizes[0], estimate.largest(lambda rows: of(rows).total, self.limit, sizes[0], share)

    def practise(self, step: Step) -> Row:
        """A stage that samples answers and learns from them; tokens are those of the answers, at most."""
        spec, execution = cast(OnlineSpec, step.spec), self._plan.execution
        new, room = spec.max_new_tokens, spec.max_length - spec.max_new_tokens
        found = self._prompts(step, room)
        prompt, longest = (found.mean, found.longest + new) if found else (room, spec.max_length)
        judged = wants_model(spec.rewards)
        apart = weights(self._judge, device=self.device, quantised=self._judge_in_4_bits)

        def need(work: Work) -> Memory:
            if isinstance(spec, PpoSpec):
                beside = apart if judged and not self._plan.trained_reward else None if judged else 0
                return estimate.ppo(self.shape, spec.method, work, new=new, judge=beside)
            written, pulls = min(estimate.ANSWERED[self.device], spec.rollout_batch), bool(cast(Any, spec).beta)
            judge = apart if judged else 0
            return estimate.group(self.shape, spec.method, spec.stage, work, new=new, written=written, judge=judge, pulls=pulls)

        memory, rows, fitting = self._cut(need, max(1, spec.global_batch // execution.processes), longest)
        tokens = float(spec.iterations * spec.rollout_batch * new)
        flops = speed.online_flops(
            self.shape, spec.method, spec.stage, prompt=prompt, new=new,
            updates=spec.ppo_epochs if isinstance(spec, PpoSpec) else cast(Any, spec).updates,
            checkpointing=execution.gradient_checkpointing, judged=judged,
        )  # fmt: skip
        seconds, rate = self._seconds(step, spec, tokens, flops)
        said = "at most: answers x max_new_tokens"
        return Row(step.name, step.state, memory, self.limit, rows, fitting, tokens, said, seconds, rate, longest)

    @property
    def _judge_in_4_bits(self) -> bool:
        """Whether the reward model's base is held in 4 bits: it was trained here, on the SFT policy's."""
        return bool(self._plan.trained_reward) and METHODS[self._plan.sft.method.name].quantised

    def answers(self, step: Step) -> Row:
        """Answers to prompts."""
        spec = cast(AnswersSpec, step.spec)
        found = self._prompts(step, 10**6)
        prompt, count = (found.longest, found.rows) if found else (_PROMPT, spec.limit)
        rows = min(estimate.ANSWERED[self.device], spec.limit or count or 32, count or 32)
        shape = self._shape(step)
        memory = estimate.answering(
            shape, self.device, rows=rows, prompt=prompt, new=spec.max_new_tokens, quantised=self._in_4_bits(step)
        )
        number = min(count, spec.limit or count) if count else None
        tokens = number * spec.samples * (prompt + spec.max_new_tokens) if number else None
        # A token that is written reads every weight and multiplies few: about a third of the rate of training.
        seconds = tokens * 3 * 2 * shape.parameters / self._rate.flops if tokens else None
        return self._plain(step, memory, tokens, "prompts and whole answers" if tokens else "", seconds)

    def scores(self, step: Step) -> Row:
        """Log-probabilities of held-out data."""
        spec = cast(ScoresSpec, step.spec)
        memory = estimate.scoring(self._shape(step), self.device, longest=spec.max_length, quantised=self._in_4_bits(step))
        kinds = {"preferences": ("heldout", "dpo"), "instructions": ("heldout", "sft"), "texts": ("texts", "texts")}
        return self._read(step, memory, kinds, spec.max_length, spec.limit)

    def rewards(self, step: Step) -> Row:
        """Rewards of held-out pairs; of answers only the pairs' length is known beforehand."""
        spec = cast(RewardsSpec, step.spec)
        quantised = self._judge_in_4_bits
        memory = estimate.scoring(self._judge, self.device, longest=spec.max_length, head=False, quantised=quantised)
        return self._read(step, memory, {"preferences": ("heldout", "reward")}, spec.max_length, spec.limit)

    def merge(self, step: Step) -> Row:
        """Merging, and comparing on prompts."""
        spec = cast(MergeSpec, step.spec)
        found = self._texts(step, "prompts", "prompts", "answers", spec.max_length)
        memory = estimate.merging(self.shape, self.device, longest=found.longest if found else spec.max_length)
        tokens = 2 * min(found.rows, spec.prompts) * found.mean if found else None
        seconds = tokens * 2 * self.shape.parameters / self._rate.flops if tokens else None
        return self._plain(step, memory, tokens, found.source if found else "", seconds)

    def probed(self, row: Row, log: Callable[[str], None]) -> Row:
        """The row with what a few real steps took, where the stage can be probed."""
        step = self._steps[row.stage]
        if not isinstance(step.spec, RowsSpec) or row.rows is None:
            return row
        rows = row.rows if row.fits else row.fitting
        if rows is None:
            log(f"{row.stage}: not probed, not even one row fits")
            return row
        self._shop.models.mkdir(parents=True, exist_ok=True)
        scratch = self._shop.store.folder("probe")
        policy, folder = self._base_policy(scratch)
        if not probe.able(step.spec, folder):
            return row
        assert row.longest is not None
        log(f"{row.stage}: {probe.STEPS} steps of {rows} rows of {row.longest} tokens")
        run = Run(scratch, self._shop.models, self._plan.execution)
        found = probe.probe(step.spec, policy, folder, run, rows=rows, longest=row.longest)
        seconds = row.tokens / found.tokens_per_second if row.tokens else None
        return replace(row, probed=found, seconds=seconds, rate_from="the probe's tokens/s")

    # -- parts --------------------------------------------------------------------------------------------------

    def _base_policy(self, scratch: Path) -> tuple[Path, Path]:
        """A policy that is the base alone, and the folder of its files."""
        out = scratch / "base"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        build_base(self._plan.model.spec(), self._plan.model.files(), out, Run(scratch, self._shop.models))
        return out, base_path(self._shop.models, read_record(out).base)

    def _texts(self, step: Step, name: str, split: str, kind: str, max_length: int) -> Tokens | None:
        source = step.inputs.get(name)
        if self.reader is None or not isinstance(source, Step) or source.artifact is None:
            return None
        try:
            return measured(self.reader, source.artifact.path / f"{split}.parquet", kind, max_length)
        except (DataError, OSError):
            return None

    def _prompts(self, step: Step, max_length: int) -> Tokens | None:
        """Prompts that are answered: prompts, or those of training pairs."""
        splits = ("prompts", "train")
        return next((found for split in splits if (found := self._texts(step, "prompts", split, "answers", max_length))), None)

    def _read(self, step: Step, memory: Memory, kinds: dict[str, tuple[str, str]], max_length: int, limit: int | None) -> Row:
        found = {name: self._texts(step, name, *where, max_length) for name, where in kinds.items() if name in step.inputs}
        if not found or not all(found.values()):
            return self._plain(step, memory, None, "", None)
        known = [texts for texts in found.values() if texts]
        tokens = sum(texts.mean * min(texts.rows, limit or texts.rows) for texts in known)
        return self._plain(step, memory, tokens, known[0].source, tokens * 2 * self._shape(step).parameters / self._rate.flops)

    def _plain(self, step: Step, memory: Memory, tokens: float | None, said: str, seconds: float | None) -> Row:
        rate = self._rate.source if seconds is not None else ""
        return Row(step.name, step.state, memory, self.limit, None, None, tokens, said, seconds, rate)

    def _champion(self, step: Step) -> Path | None:
        """The champion's policy, where a stage reads that; it may have another base than the plan's."""
        source = step.inputs.get("policy")
        return source.artifact.path if isinstance(source, Step) and source.name == CHAMPION and source.artifact else None

    def _shape(self, step: Step) -> Shape:
        """Of the policy that a stage reads; the plan's where the champion's base is not here."""
        if (policy := self._champion(step)) is None:
            return self.shape
        folder = policy / MODEL if (policy / MODEL).is_dir() else base_path(self._shop.models, read_record(policy).base)
        return of_folder(folder) if (folder / "config.json").is_file() else self.shape

    def _in_4_bits(self, step: Step) -> bool:
        """Whether the policy that a stage reads is held in 4 bits: trained so, and neither the base nor merged."""
        if policy := self._champion(step):
            return read_record(policy).quantization is not None and not (policy / MODEL).is_dir()
        source = step.inputs.get("policy")
        trained = isinstance(source, Step) and source.stage.name in _TRAINED
        return trained and METHODS[self._plan.sft.method.name].quantised

    def _seconds(self, step: Step, spec: TrainSpec, tokens: float | None, flops: float) -> tuple[float | None, str]:
        if tokens is None:
            return None, ""
        if (known := self._measured_rate(step, spec)) is not None:
            return tokens / known, f"{known:,.0f} tokens/s of an earlier {step.name}"
        return tokens * flops / self._rate.flops, self._rate.source

    def _measured_rate(self, step: Step, spec: TrainSpec) -> float | None:
        """Tokens per second of the youngest artifact of this stage, method and base that was built on this machine."""
        machine = provenance()["machine"]
        base = self._steps["base"].artifact
        rate: float | None = None
        for artifact in self._shop.store.all():
            fields: Any = artifact.identity
            same = artifact.stage == step.stage.name and fields["spec"].get("method", {}).get("name") == spec.method.name
            if not same or artifact.provenance.get("machine") != machine or not base:
                continue
            if _rests_on(artifact.path, base.path) and (seen := artifact.metrics.get("tokens_per_second")):
                rate = float(cast(float, seen))
        return rate

    @cached_property
    def _rate(self) -> Rate:
        return speed.here() if self.device == "cpu" else Rate(1.5e14, "a usual GPU of 150 TFLOP/s; probe for better")


def _rests_on(policy: Path, base: Path) -> bool:
    """Whether both policies have one base."""
    try:
        return read_record(policy).base == read_record(base).base
    except DataError:
        return False


def _schedule(spec: RowsSpec, found: Tokens | None, texts: int) -> tuple[float | None, str]:
    """Tokens of the whole schedule, and how they are known."""
    if found and spec.stage == "pretrain":
        total = found.rows * found.mean
        packed = total / spec.max_length
        number = steps(int(packed) or 1, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps)
        return float(number * spec.global_batch * spec.max_length), found.source
    if found:
        number = steps(found.rows, global_batch=spec.global_batch, epochs=spec.epochs, max_steps=spec.max_steps)
        return number * spec.global_batch * found.mean, found.source
    if spec.max_steps:
        return float(spec.max_steps * spec.global_batch * spec.max_length * texts), "at most: max_steps x max_length"
    return None, "not curated yet"


def _machine(plan: Plan) -> tuple[Device, int]:
    """The device a child would take, and the bytes it may use there."""
    execution = plan.execution
    if execution.device != "cpu" and (free := free_gpu_memory()):
        return "cuda", free
    if execution.device == "cuda":
        raise MachineError("execution.device is cuda, but nvidia-smi names no GPU here; use auto or cpu?")
    return "cpu", free_memory() // (execution.processes * execution.parallel)


_TRAINED = ("pretrain", "sft", *{row.stage.name for row in ALGORITHMS.values()})
"""stages whose policies are held as they were trained"""
_ROWS: dict[str, Callable[[_Here, Step], Row]] = {
    **dict.fromkeys(("pretrain", "sft", "reward", "dpo", "kto", "orpo"), _Here.train),
    **dict.fromkeys(("grpo", "rloo", "ppo"), _Here.practise),
    "answers": _Here.answers,
    "scores": _Here.scores,
    "rewards": _Here.rewards,
    "merge": _Here.merge,
}
"""stages that load a model -> how they are estimated"""


def known(plan: Plan) -> tuple[Shape, int | None]:
    """The shape of a plan's model, and its rows of instructions where they are curated."""
    explain = Explain(plan.workshop())
    pipeline(plan, explain)
    here = _Here(plan, explain)
    data = next((step for step in explain.steps if step.name == "sft"), None)
    source = data.inputs.get("data") if data else None
    rows = source.artifact.metrics.get("train") if isinstance(source, Step) and source.artifact else None
    return here.shape, rows if isinstance(rows, int) else None
