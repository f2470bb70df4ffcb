-- Pairs that another pair contradicts: A over B here, B over A there, on one prompt, compared as normalised text.  Both go.
-- Grain: candidate.  Reads: candidates, rules, records.  Parameters: none.
with sound as (
    select
        candidates.candidate,
        candidates.prompt_key,
        candidates.chosen_key,
        candidates.rejected_key,
        records.place || ':' || records.line as origin
    from candidates
    inner join records on candidates.record = records.record
    anti join rules on candidates.candidate = rules.candidate
    where candidates.chosen_key <> candidates.rejected_key
)

select
    here.candidate,
    'contradicting pair: ' || min_by(there.origin, there.candidate) as reason
from sound as here
inner join sound as there
    on
        here.prompt_key = there.prompt_key
        and here.chosen_key = there.rejected_key
        and here.rejected_key = there.chosen_key
group by here.candidate
