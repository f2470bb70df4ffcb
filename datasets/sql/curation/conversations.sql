-- The group that a kept row may not be split from: at first, all rows with the same first user turn as normalised text.
-- Grain: candidate.  Reads: candidates, rules, contradictions, duplicates.  Parameters: none.
select
    candidates.candidate,
    candidates.first_prompt_key,
    candidates.named_group,
    left(candidates.first_prompt_key, 16) as conversation
from candidates
anti join rules on candidates.candidate = rules.candidate
anti join contradictions on candidates.candidate = contradictions.candidate
anti join duplicates on candidates.candidate = duplicates.candidate
