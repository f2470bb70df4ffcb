-- Lengths in characters of what is kept.
-- Grain: field.  Reads: kept.  Parameters: none.
with measured as (
    select
        case form
            when 'classes' then 'text'
            when 'tags' then 'tokens'
            else 'context'
        end as field,
        coalesce(length(text), length(context), length(array_to_string(tokens, ' '))) as chars
    from kept
    union all
    select
        'second text' as field,
        length(pair) as chars
    from kept
    where pair is not null
    union all
    select
        'question' as field,
        length(question) as chars
    from kept
    where question is not null
)

select
    field,
    min(chars)::bigint as smallest,
    quantile_disc(chars, 0.5)::bigint as middle,
    quantile_disc(chars, 0.95)::bigint as high,
    max(chars)::bigint as largest
from measured
group by field
order by field
