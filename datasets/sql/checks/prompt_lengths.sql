-- Lengths in characters of what is kept.
-- Grain: field.  Reads: kept.  Parameters: none.
with measured as (
    select coalesce(list_sum([length(turn.content) for turn in prompt]), 0) as chars
    from kept
)

select
    'prompt' as field,
    min(chars)::bigint as smallest,
    quantile_disc(chars, 0.5)::bigint as middle,
    quantile_disc(chars, 0.95)::bigint as high,
    max(chars)::bigint as largest
from measured
