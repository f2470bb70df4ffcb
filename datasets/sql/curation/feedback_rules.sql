-- Answers that teach nothing, each with the first rule it breaks.  What is said of a pair is said of both its answers.
-- Grain: candidate.  Reads: candidates, records, sources.  Parameters: $max_prompt_chars, $max_answer_chars, $keep_long.
with judged as (
    select
        candidates.candidate,
        case
            when candidates.roles = '' then 'no prompt'
            when not regexp_matches(candidates.roles, '^(system )?(user assistant )*user$') then 'roles out of order'
            when candidates.empty_prompts > 0 then 'empty prompt'
            when candidates.empty_answers > 0 then 'empty answer in the prompt'
            when candidates.answer = '' then 'empty answer'
            when candidates.answer = candidates.other_answer then 'identical sides'
            when candidates.gap = 0 or candidates.margin = 0 then 'tie'
            when candidates.gap < 0 or candidates.margin < 0 then 'the rejected answer scores higher'
            when candidates.margin < sources.min_margin then 'margin under the minimum'
            when not $keep_long and candidates.prompt_chars > $max_prompt_chars then 'over-long prompt'
            when not $keep_long and candidates.answer_chars > $max_answer_chars then 'over-long answer'
        end as reason
    from candidates
    inner join records on candidates.record = records.record
    inner join sources on records.source = sources.source
)

select
    candidate,
    reason
from judged
where reason is not null
