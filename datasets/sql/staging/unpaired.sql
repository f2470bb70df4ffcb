-- Scored or labelled answers out of which no pair came, and why.
-- Grain: record, part.  Reads: items, ranked_pairs, labelled_pairs.  Parameters: none.
with scores as (
    select
        record,
        part,
        list_filter([entry.score for entry in answers], lambda score: score is not null) as found
    from items
    where answers is not null
),

matched as (
    select record from labelled_pairs
    union all
    select other_record from labelled_pairs
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
union all
select
    items.record,
    items.part,
    if(items.liked, 'no disliked answer left for the prompt', 'no liked answer left for the prompt') as reason
from items
anti join matched on items.record = matched.record
where items.answer is not null
