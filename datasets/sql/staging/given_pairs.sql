-- Pairs that a record states itself: a chosen and a rejected answer.
-- Grain: record, part.  Reads: items.  Parameters: none.
select
    record,
    null::bigint as other_record,
    part,
    1::bigint as nth,
    task,
    named_group,
    messages as prompt,
    rejected_prompt,
    chosen,
    rejected,
    chosen_score,
    rejected_score,
    coalesce(margin, if(ordinal, null, chosen_score - rejected_score)) as margin,
    images
from items
where chosen is not null
