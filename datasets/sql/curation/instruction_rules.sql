-- Conversations that no training can use, each with the first rule it breaks.
-- Grain: candidate.  Reads: candidates.  Parameters: $max_prompt_chars, $max_answer_chars, $keep_long.
with judged as (
    select
        candidate,
        case
            when roles = '' then 'no turns'
            when not ends_with(roles, 'assistant') then 'does not end with an answer'
            when not regexp_matches(roles, '^(system )?(user assistant )*user assistant$') then 'roles out of order'
            when empty_prompts > 0 then 'empty prompt'
            when empty_answers > 0 then 'empty answer'
            when not $keep_long and prompt_chars > $max_prompt_chars then 'over-long prompt'
            when not $keep_long and answer_chars > $max_answer_chars then 'over-long answer'
        end as reason
    from candidates
)

select
    candidate,
    reason
from judged
where reason is not null
