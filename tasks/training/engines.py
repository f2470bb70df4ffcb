# pyright: basic
"""Who writes the answers that a policy practises on: the model that is trained itself, or a vLLM server beside it.

A server must serve the very model that is trained, so a few answers of every rollout are asked for with their log-probabilities,
which must be the model's own; where they are not, the run ends before anything is learned from them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from math import fsum
from pathlib import Path
from typing import Any

import torch

from tasks.core.contract import Run
from tasks.core.errors import SpecError
from tasks.core.files import file_digest
from tasks.core.spec import sha256
from tasks.rollouts import OnlineSpec
from tasks.training.adapters import Start, write_adapter
from tasks.training.data import Encoder
from tasks.training.rollout import Ask, Engine, TransformersEngine
from tasks.vllm_format import CONFIG, WEIGHTS, VllmLora, vllm_lora
from tasks.vllm_server import THREADS, Sampling, VllmServer, Written

ADAPTERS = "vllm"
"""folder in the work folder, one in it for each process: what the server reads"""
CHECKED = 8
"""answers of a rollout whose log-probabilities are compared"""
GAP = 0.1
"""nats per token, mean of their distances, that server and model may be apart: bfloat16 makes a few hundredths of it"""


def engine(spec: OnlineSpec, begin: Start, encoder: Encoder, run: Run, *, silent: int, rows: int, process: int = 0) -> Engine:
    """What `spec` asks for.  silent: so many tokens come before a stop token may.  rows: at once, where we answer ourselves."""
    if spec.engine == "vllm":
        return VllmEngine(spec, begin, encoder, run, silent=silent, process=process)
    return TransformersEngine(
        begin.model,
        encoder,
        new_tokens=spec.max_new_tokens,
        silent=silent,
        temperature=spec.temperature,
        seed=spec.seed,
        rows=rows,
    )


class VllmEngine:
    """Answers by a vLLM server, which is given the policy's adapter before each rollout, under a name of the run and its digest.

    Never two adapters by one name: the keys of the server's prefix cache hold names.  Never two runs at one name, however equal
    their adapters: each drops what it loaded.
    """

    def __init__(
        self, spec: OnlineSpec, begin: Start, encoder: Encoder, run: Run, *, silent: int, process: int = 0
    ) -> None:  # fmt: skip
        """process: number of this one, of several that practise together.

        Raises SpecError where vLLM would not serve the adapter, MachineError where the environment names no server.
        """
        if len(begin.record.adapters) > 1:
            below = ", ".join(begin.record.adapters[:-1])
            raise SpecError(
                f"{spec.stage}: engine vllm: the policy's adapter lies on another one ({below}), and vLLM puts none below it; "
                "train all stages with one method of one shape, or use engine: transformers"
            )
        self._spec, self._begin, self._encoder, self._run = spec, begin, encoder, run
        self._folder = run.work.resolve() / ADAPTERS / str(process)
        self._sampling = Sampling(spec.temperature, spec.max_new_tokens, silent, encoder.stops)
        self._served: Path | None = None
        self.gap: float | None = None
        said = self._judged(self._written())
        held = begin.record.quantization is not None
        self._server = VllmServer.from_environment(said.server(str(begin.loaded.source), quantised=held))

    def answers(self, asked: Sequence[Ask], progress: Callable[[int, int], None]) -> list[list[int]]:
        """Tokens of each answer, the stop token included; `gap` says how far the server was off."""
        name = self._serve(self._written())
        found = self._asked(name, asked, progress)
        self.gap = self._checked(asked[:CHECKED], found[:CHECKED])
        return [written.tokens for written in found]

    def close(self) -> None:
        """Have the server drop the last adapter, and delete it."""
        if self._served:
            self._drop(self._served.name)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _written(self) -> Path:
        """The folder of the policy's adapter as it is now; its name is the run's, equal in all its processes, and its digest."""
        draft = self._folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        adapter = draft / "adapter"
        write_adapter(adapter, self._begin.model, self._begin.record.base.name, self._begin.method)
        work = self._run.work.resolve()  # of its key in its store: two stores may build the same key at one server
        digest = sha256("\n".join([str(work), *(file_digest(adapter / file) for file in (CONFIG, WEIGHTS))]))
        name = f"align-{work.name[:8]}-{digest[:12]}"
        if not (self._folder / name).exists():
            adapter.rename(self._folder / name)
        shutil.rmtree(draft)
        return self._folder / name

    def _judged(self, adapter: Path) -> VllmLora:
        """What vLLM says to an adapter."""
        config = json.loads((self._begin.loaded.source / "config.json").read_text(encoding="utf-8"))
        said = vllm_lora(adapter, config)
        if said.problems:
            raise SpecError(
                f"{self._spec.stage}: engine vllm: vLLM would not serve the policy: {'; '.join(said.problems)}; use engine: "
                "transformers"
            )
        return said

    def _serve(self, adapter: Path) -> str:
        """Have the server hold `adapter` and none of ours beside it; its name there."""
        if self._served and self._served != adapter:
            self._drop(self._served.name)
        self._server.load(adapter.name, adapter)
        self._served = adapter
        for other in self._folder.iterdir():
            if other != adapter:
                shutil.rmtree(other)
        return adapter.name

    def _drop(self, name: str) -> None:
        if why := self._server.unload(name):
            self._run.log(f"vLLM: keeps the adapter {name} ({why})")

    def _asked(self, name: str, asked: Sequence[Ask], progress: Callable[[int, int], None]) -> list[Written]:
        """Every answer, each a question of its own; the first error ends the others that have not begun."""
        with ThreadPoolExecutor(THREADS, thread_name_prefix="vllm") as pool:
            futures = [
                pool.submit(
                    self._server.write, name, ask.prompt, self._sampling, seed=seed(self._spec.seed, ask.name), logps=i < CHECKED
                )
                for i, ask in enumerate(asked)
            ]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    progress(done, len(asked))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]

    @torch.no_grad()
    def _checked(self, asked: Sequence[Ask], found: Sequence[Written]) -> float:
        """Nats per token between the server and the model in its present role.  Raises MachineError where they are too many."""
        off = [
            abs(ours - theirs)
            for ask, written in zip(asked, found, strict=True)
            for ours, theirs in zip(self._logps(ask.prompt, written.tokens), written.logps, strict=True)
        ]
        gap = fsum(off) / len(off)
        if not gap <= GAP:
            raise self._server.broken(
                f"does not serve the model that is trained: its log-probabilities of {len(found)} answers are {gap:.3g} nats per "
                f"token off, where {GAP:g} is the most; it has another base, precision or adapter"
            )
        self._run.log(
            f"vLLM: {len(off)} log-probabilities are {gap:.2g} nats off those of the model that is trained, in the mean"
        )
        return gap

    def _logps(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Log-probabilities of the answer's tokens by the model itself, at temperature 1 and with nothing left out."""
        model: Any = self._begin.model
        ids_1T = torch.tensor([[*prompt, *answer]], device=model.device)
        logits_RV = model(input_ids=ids_1T, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        return logits_RV.log_softmax(-1).gather(1, ids_1T[0, -len(answer) :, None])[:, 0].tolist()


def seed(of_spec: int, name: str) -> int:
    """The number that decides an answer's draws, together with the server's batch: in [0, 2**63)."""
    return int.from_bytes(hashlib.sha256(f"{of_spec}\n{name}".encode()).digest()[:8], "little") >> 1
