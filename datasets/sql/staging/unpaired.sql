-- Scored or labelled answers out of which no pair came, and why.
-- Grain: record, part.  Reads: items, unranked, labelled_pairs.  Parameters: none.
with matched as (
    select record from labelled_pairs
    union all
    select other_record from labelled_pairs
)

select
    record,
    part,
    reason
from unranked
union all
select
    items.record,
    items.part,
    if(items.liked, 'no disliked answer left for the prompt', 'no liked answer left for the prompt') as reason
from items
anti join matched on items.record = matched.record
where items.answer is not null
