-- Every record that gave nothing, with the first reason and its raw text.
-- Grain: record.  Reads: records, verdicts.  Parameters: none.
with outcomes as (
    select
        record,
        bool_or(reason is null) as is_kept,
        first(stage order by part, candidate) as stage,
        first(reason order by part, candidate) as reason
    from verdicts
    group by record
)

select
    records.record as place,
    records.place as source,
    records.line,
    coalesce(records.stage, outcomes.stage) as stage,
    coalesce(records.reason, outcomes.reason) as reason,
    records.raw
from records
left join outcomes on records.record = outcomes.record
where records.reason is not null or not coalesce(outcomes.is_kept, false)
