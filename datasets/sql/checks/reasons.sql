-- How many records each rule sent to quarantine, and how many items of kept records it dropped.
-- Grain: stage, rule.  Reads: quarantine, dropped.  Parameters: none.
with together as (
    select
        stage,
        split_part(reason, ': ', 1) as rule,
        1 as records,
        0 as items
    from quarantine
    union all
    select
        stage,
        split_part(reason, ': ', 1) as rule,
        0 as records,
        1 as items
    from dropped
)

select
    stage,
    rule,
    sum(records)::bigint as records,
    sum(items)::bigint as items
from together
group by stage, rule
order by records desc, items desc, stage asc, rule asc
