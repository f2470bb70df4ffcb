-- Answers that are liked here and disliked there, on one prompt, compared as normalised text up to the cut.  All of them go.
-- Grain: candidate.  Reads: candidates, rules, records.  Parameters: none.
with sound as (
    select
        candidates.candidate,
        candidates.prompt_key,
        candidates.answer_key,
        candidates.liked,
        records.place || ':' || records.line as origin
    from candidates
    inner join records on candidates.record = records.record
    anti join rules on candidates.candidate = rules.candidate
)

select
    here.candidate,
    'contradicting feedback: ' || min_by(there.origin, there.candidate) as reason
from sound as here
inner join sound as there
    on
        here.prompt_key = there.prompt_key
        and here.answer_key = there.answer_key
        and here.liked <> there.liked
group by here.candidate
