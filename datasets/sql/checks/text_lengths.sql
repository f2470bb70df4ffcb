-- Lengths in characters of what is kept.
-- Grain: field.  Reads: kept.  Parameters: none.
with measured as (
    select length(text) as chars
    from kept
)

select
    'text' as field,
    min(chars)::bigint as smallest,
    quantile_disc(chars, 0.5)::bigint as middle,
    quantile_disc(chars, 0.95)::bigint as high,
    max(chars)::bigint as largest
from measured
