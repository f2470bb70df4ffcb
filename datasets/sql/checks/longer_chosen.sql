-- The length baseline: how often "the longer answer wins" is right, a draw counting half, and the mean difference in characters.
-- Grain: one row.  Reads: kept.  Parameters: none.
select
    avg(if(length(chosen) > length(rejected), 1.0, if(length(chosen) = length(rejected), 0.5, 0.0))) as longer_chosen_share,
    avg(length(chosen) - length(rejected)) as mean_extra_chars
from kept
