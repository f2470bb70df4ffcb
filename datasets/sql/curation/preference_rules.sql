-- Pairs that say nothing, each with the first rule it breaks.  Scores and margins count where a pair has them.
-- Grain: candidate.  Reads: candidates, records, sources.  Parameters: $max_prompt_chars, $max_answer_chars, $keep_long.
with judged as (
    select
        candidates.candidate,
        case
            when candidates.roles = '' then 'no prompt'
            when candidates.prompt_differs then 'prompt not shared'
            when not regexp_matches(candidates.roles, '^(system )?(user assistant )*user$') then 'roles out of order'
            when candidates.empty_prompts > 0 then 'empty prompt'
            when candidates.empty_answers > 0 then 'empty answer in the prompt'
            when candidates.chosen = '' and candidates.rejected = '' then 'empty side: both'
            when candidates.chosen = '' then 'empty side: chosen'
            when candidates.rejected = '' then 'empty side: rejected'
            when candidates.chosen = candidates.rejected then 'identical sides'
            when candidates.chosen_score = candidates.rejected_score or candidates.margin = 0 then 'tie'
            when candidates.chosen_score < candidates.rejected_score or candidates.margin < 0
                then 'the rejected answer scores higher'
            when candidates.margin < sources.min_margin then 'margin under the minimum'
            when left(candidates.chosen, $max_answer_chars) = left(candidates.rejected, $max_answer_chars)
                then 'identical after truncation'
            when not $keep_long and candidates.prompt_chars > $max_prompt_chars then 'over-long prompt'
            when not $keep_long and greatest(candidates.chosen_chars, candidates.rejected_chars) > $max_answer_chars
                then 'over-long answer'
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
