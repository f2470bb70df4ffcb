-- Scored answers of which none is better than another, and why.
-- Grain: record, part.  Reads: items, ranked_pairs.  Parameters: none.
with scores as (
    select
        record,
        part,
        list_filter([entry.score for entry in answers], lambda score: score is not null) as found
    from items
    where answers is not null
)

select
    scores.record,
    scores.part,
    case
        when len(scores.found) < 2 then 'fewer than two scored answers'
        when list_min(scores.found) = list_max(scores.found) then 'all answers tie'
        else 'no two answers differ by the margin'
    end as reason
from scores
anti join ranked_pairs on scores.record = ranked_pairs.record and scores.part = ranked_pairs.part
