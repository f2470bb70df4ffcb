-- What became of everything a record said; reason is null for what is kept.  A pair made from two records is told to both.
-- Grain: record, part, candidate.  Reads: candidates, rules, contradictions, duplicates, unpaired.  Parameters: none.
with judged as (
    select
        candidates.record,
        candidates.other_record,
        candidates.part,
        candidates.candidate,
        case
            when rules.reason is not null then 'rules'
            when contradictions.reason is not null then 'contradictions'
            when duplicates.reason is not null then 'duplicates'
        end as stage,
        coalesce(rules.reason, contradictions.reason, duplicates.reason) as reason
    from candidates
    left join rules on candidates.candidate = rules.candidate
    left join contradictions on candidates.candidate = contradictions.candidate
    left join duplicates on candidates.candidate = duplicates.candidate
)

select
    record,
    part,
    candidate,
    stage,
    reason
from judged
union all
select
    other_record as record,
    part,
    candidate,
    stage,
    reason
from judged
where other_record is not null
union all
select
    record,
    part,
    0 as candidate,
    'pairs' as stage,
    reason
from unpaired
