-- Pairs out of unpaired labels: in file order, the first liked answer to a prompt against its first disliked one, and so on.
-- No answer is used twice.  Grain: record (of the liked answer), part.  Reads: items, records.  Parameters: none.
with labelled as (
    select
        items.record,
        items.part,
        items.task,
        items.named_group,
        items.messages,
        items.answer,
        items.liked,
        items.images,
        records.source,
        sha256(
            array_to_string([turn.role || ': ' || turn.content for turn in items.messages], chr(30))
            || coalesce(chr(28) || array_to_string(items.images, chr(28)), '')
        ) as prompt_key
    from items
    inner join records on items.record = records.record
    where items.answer is not null
),

queued as (
    select
        *,
        row_number() over (partition by source, prompt_key, liked order by record, part) as turn
    from labelled
)

select
    better.record,
    worse.record as other_record,
    better.part,
    1::bigint as nth,
    better.task,
    better.named_group,
    better.messages as prompt,
    null::struct("role" varchar, content varchar)[] as rejected_prompt,
    better.answer as chosen,
    worse.answer as rejected,
    null::double as chosen_score,
    null::double as rejected_score,
    null::double as margin,
    better.images
from queued as better
inner join queued as worse
    on
        better.source = worse.source
        and better.prompt_key = worse.prompt_key
        and better.turn = worse.turn
where better.liked and not worse.liked
