-- What was refused of records that gave something else: some of several pairs, prompts or instances.
-- Grain: record, part, candidate.  Reads: records, verdicts.  Parameters: none.
with kept as (
    select distinct record from verdicts
    where reason is null
)

select
    row_number() over (order by verdicts.record, verdicts.part, verdicts.candidate) as place,
    records.place as source,
    records.line,
    verdicts.stage,
    verdicts.reason,
    records.raw
from verdicts
inner join kept on verdicts.record = kept.record
inner join records on verdicts.record = records.record
where verdicts.reason is not null
