-- Must be empty: records that are neither kept nor in quarantine, or both.  This is the row equation.
-- Grain: record.  Reads: records, verdicts, quarantine.  Parameters: none.
with kept as (
    select distinct record from verdicts
    where reason is null
)

select
    records.record,
    kept.record is not null as is_kept,
    count(quarantine.place) as times_quarantined
from records
left join kept on records.record = kept.record
left join quarantine on records.record = quarantine.place
group by records.record, kept.record
having (kept.record is not null)::int + count(quarantine.place) <> 1
