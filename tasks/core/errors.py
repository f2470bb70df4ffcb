"""The one error tree: where, what was seen, what to try, in one sentence.

AlignError            exit 1   a bug of ours
├── SpecError         exit 2   the plan asks for something that cannot be
├── DataError         exit 2   the data cannot be used as asked
├── GateError         exit 3   a gate said no, or asks for a person
└── MachineError      exit 4   the machine failed, the request was fine
    ├── OutOfMemory            retried with half the micro-batch
    ├── Killed                 retried, resumes from its last complete checkpoint
    └── TimedOut               not retried: it would time out again

A new error: derive from the branch whose exit code and retry rule fit; `RETRYABLE` below is the retry rule.
"""


class AlignError(Exception):
    """A stage or the tool itself went wrong in a way nobody foresaw."""

    exit_code = 1


class SpecError(AlignError):
    """The plan asks for something that cannot be."""

    exit_code = 2


class DataError(AlignError):
    """The data cannot be used as asked."""

    exit_code = 2


class GateError(AlignError):
    """A gate said no, or asks for a person."""

    exit_code = 3


class MachineError(AlignError):
    """The machine failed; the request was fine."""

    exit_code = 4


class OutOfMemory(MachineError):
    """A child ran out of memory."""


class Killed(MachineError):
    """A child was killed, or its machine went away."""


class TimedOut(MachineError):
    """A child did not finish within its time limit."""


RETRYABLE = (OutOfMemory, Killed)
ERRORS: dict[str, type[AlignError]] = {
    e.__name__: e for e in (AlignError, SpecError, DataError, GateError, MachineError, OutOfMemory, Killed, TimedOut)
}
