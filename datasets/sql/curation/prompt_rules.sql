-- Prompts that no model can be asked, each with the first rule it breaks.
-- Grain: candidate.  Reads: candidates.  Parameters: $max_prompt_chars, $keep_long.
with judged as (
    select
        candidate,
        case
            when roles = '' then 'no turns'
            when not regexp_matches(roles, '^(system )?(user assistant )*user$') then 'roles out of order'
            when empty_prompts > 0 then 'empty prompt'
            when empty_answers > 0 then 'empty answer'
            when not $keep_long and prompt_chars > $max_prompt_chars then 'over-long prompt'
        end as reason
    from candidates
)

select
    candidate,
    reason
from judged
where reason is not null
