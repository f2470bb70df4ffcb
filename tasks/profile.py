"""The stage `profile`: what a policy costs in use, beside the base it was made from, all measured in one process.

On a busy machine seconds mean little.  So base, policy and merged policy take turns, a short round each, and what is reported
later is the ratio within a round.  Timings differ from build to build: a profile is measured once and then kept.
"""

from pathlib import Path

from pydantic import Field

from tasks.core.contract import Inputs, Metrics, Run, Stage
from tasks.core.spec import Spec
from tasks.generate import alone

PROFILE_FILE = "profile.json"
VARIANTS = ("base", "unmerged", "merged")
"""inputs of the stage; the last is left out where the method cannot be merged"""


class ProfileSpec(Spec):
    """Time the use of a policy: reading a prompt, then writing token by token."""

    prompt_tokens: int = Field(default=128, ge=1)
    """tokens read at once before the first token is written"""
    new_tokens: int = Field(default=16, ge=2)
    """tokens written one by one"""
    rounds: int = Field(default=20, ge=6)
    """turns of each model, after one that does not count; 6 is the fewest that give an interval"""


def profile(spec: ProfileSpec, inputs: Inputs, out: Path, run: Run) -> Metrics:
    """Write `profile.json`: seconds of every round, and memory.  Inputs: base, unmerged, merged (optional), prompts."""
    return alone("profile", spec, inputs, out, run)


PROFILE = Stage("profile", 1, "profile", profile, heavy=True)
"""inputs: base, unmerged, prompts; merged where there is one"""
