"""The merge stage: add a policy's adapters to its base and certify that the outcome answers as before."""

from functools import partial

from pydantic import NonNegativeFloat, PositiveInt

from tasks.base import on_base
from tasks.core.contract import Stage
from tasks.core.spec import Spec


class MergeSpec(Spec):
    """Write a policy as one plain model."""

    tolerance: NonNegativeFloat = 1e-3
    """largest allowed distance of any logit, merged against unmerged; for a quantised base see the next field"""
    quantised_tolerance: NonNegativeFloat = 0.05
    """the same where the base was held in 4 bits"""
    prompts: PositiveInt = 32
    """held prompts the two are compared on, the first of the prompts by id"""
    max_length: PositiveInt = 512
    """tokens of a prompt that are compared"""


MERGE = Stage("merge", 1, "policy", partial(on_base, "merge"), heavy=True)
"""inputs: policy, prompts; or a task model as policy, and data (labelled)"""
