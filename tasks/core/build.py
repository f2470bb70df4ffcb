"""From a stage, its spec and its inputs to an artifact.  No Prefect here: this is what a plain script would call."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

from tasks.core.contract import Cost, Execution, Identity, Metrics, Run, Stage, Usage
from tasks.core.files import any_locked
from tasks.core.secrets import redact
from tasks.core.spec import Spec
from tasks.core.store import Artifact, Store

Source = Artifact | Path
"""what a stage reads: an upstream artifact, or a raw file or folder the plan names"""


@dataclass(frozen=True)
class Workshop:
    """Where things are built: the store, the model cache, and how to run."""

    store: Store
    models: Path
    execution: Execution = field(default_factory=Execution)

    def identity(self, stage: Stage, spec: Spec, inputs: Mapping[str, Source]) -> Identity:
        """What `stage` would build from these inputs."""
        return Identity.of(stage, spec, {name: self._digest(source) for name, source in inputs.items()})

    def build(
        self, stage: Stage, spec: Spec, inputs: Mapping[str, Source], *, fresh: bool = False, run: Run | None = None
    ) -> tuple[Artifact, bool]:
        """The artifact of `stage`, and whether it was built now.  `run` carries the callbacks for log and progress."""
        calls = run or Run(work=Path(), models=self.models)

        def write(out: Path, work: Path) -> tuple[Metrics, Cost]:
            paths = {name: source if isinstance(source, Path) else source.path for name, source in inputs.items()}
            children: list[Usage] = []
            here = Run(work, self.models, self.execution, calls.log, calls.progress, used=children.append)
            with self._slot() if stage.heavy else nullcontext():
                calls.started()
                started = time.monotonic()
                metrics = stage.function(spec, paths, out, here)
                usage = reduce(Usage.__add__, children) if children else None
                return metrics, Cost(time.monotonic() - started, usage)

        artifact, built = self.store.build(self.identity(stage, spec, inputs), write, fresh=fresh)
        if not built:
            self.share([artifact], calls.log)
        return artifact, built

    def share(self, artifacts: Sequence[Artifact], log: Callable[[str], None]) -> None:
        """Push what was found here and is missing on the shared storage.

        What prevents that is logged, for they are here; after the first failure no other is tried: each may wait for minutes.
        """
        for i, artifact in enumerate(artifacts):
            what = f"{artifact.kind} {artifact.key[:12]}"
            try:
                if self.store.share(artifact):
                    log(f"{what}: was not on the shared storage yet, pushed")
            except Exception as error:  # noqa: BLE001  each file system of fsspec raises its own
                why = f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:200]}"
                left = len(artifacts) - i - 1
                others = f", and {left} more not tried" if left else ""
                log(f"{what}: not pushed to the shared storage ({why}){others}; the next run tries again")
                return

    def _digest(self, source: Source) -> str:
        return self.store.digests.digest(source) if isinstance(source, Path) else source.digest

    def _slot(self) -> AbstractContextManager[None]:
        """One of this machine's places for heavy stages, over all runs and stores that share the model cache."""
        return any_locked([self.models / ".slots" / str(i) for i in range(self.execution.parallel)])
