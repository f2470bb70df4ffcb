-- Rows that another row contradicts: one text (normalised; tokens and questions as they are written), two labels.  All go.
-- Grain: candidate.  Reads: candidates, rules, records.  Parameters: none.
with sound as (
    select
        candidates.candidate,
        candidates.prompt_key,
        candidates.wanted_key,
        records.place || ':' || records.line as origin
    from candidates
    inner join records on candidates.record = records.record
    anti join rules on candidates.candidate = rules.candidate
),

labels as (
    select
        prompt_key,
        wanted_key,
        min(candidate) as candidate,
        min_by(origin, candidate) as origin
    from sound
    group by prompt_key, wanted_key
)

select
    here.candidate,
    'contradicting label: ' || min_by(there.origin, there.candidate) as reason
from sound as here
inner join labels as there
    on
        here.prompt_key = there.prompt_key
        and here.wanted_key <> there.wanted_key
group by here.candidate
