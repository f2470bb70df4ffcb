-- Pairs out of several scored answers: the best against the worst, or every two, at least the margin apart.
-- Grain: record, part, nth.  Reads: items, records, sources.  Parameters: none.
with listed as (
    select
        record,
        part,
        unnest(answers) as entry,
        generate_subscripts(answers, 1) as position
    from items
    where answers is not null
),

scored as (
    select
        record,
        part,
        entry.text as content,
        entry.score as points,
        row_number() over (partition by record, part order by entry.score desc, position asc) as from_best,
        row_number() over (partition by record, part order by entry.score asc, position asc) as from_worst
    from listed
    where entry.score is not null
)

select
    items.record,
    null::bigint as other_record,
    items.part,
    row_number() over (partition by items.record, items.part order by better.from_best, worse.from_worst) as nth,
    items.task,
    items.named_group,
    items.messages as prompt,
    null::struct("role" varchar, content varchar)[] as rejected_prompt,
    better.content as chosen,
    worse.content as rejected,
    better.points as chosen_score,
    worse.points as rejected_score,
    if(items.ordinal, null, better.points - worse.points) as margin,
    items.images
from items
inner join records on items.record = records.record
inner join sources on records.source = sources.source
inner join scored as better on items.record = better.record and items.part = better.part
inner join scored as worse on items.record = worse.record and items.part = worse.part
where
    better.points > worse.points
    and better.points - worse.points >= sources.min_margin
    and (sources.take = 'all' or (better.from_best = 1 and worse.from_worst = 1))
