-- Records read, kept and quarantined by source and schema.
-- Grain: source, schema.  Reads: records, quarantine.  Parameters: none.
select
    records.place as source,
    coalesce(records.shape, 'not understood') as shape,
    count(*) as rows_in,
    count(*) - count(quarantine.place) as rows_kept,
    count(quarantine.place) as rows_quarantined
from records
left join quarantine on records.record = quarantine.place
group by records.place, shape
order by min(records.record)
