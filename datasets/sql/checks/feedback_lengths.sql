-- Lengths in characters of what is kept.
-- Grain: field.  Reads: kept.  Parameters: none.
with measured as (
    select
        'prompt' as field,
        coalesce(list_sum([length(turn.content) for turn in prompt]), 0) as chars
    from kept
    union all
    select
        if(liked, 'liked', 'disliked') as field,
        length(answer) as chars
    from kept
)

select
    field,
    min(chars)::bigint as smallest,
    quantile_disc(chars, 0.5)::bigint as middle,
    quantile_disc(chars, 0.95)::bigint as high,
    max(chars)::bigint as largest
from measured
group by field
order by field desc
