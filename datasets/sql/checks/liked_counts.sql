-- How many liked and disliked answers there are on either side of the split.
-- Grain: label.  Reads: kept.  Parameters: none.
select
    if(liked, 'liked', 'disliked') as label,
    count(*) filter (where not is_heldout) as train,
    count(*) filter (where is_heldout) as heldout
from kept
group by liked
order by liked desc
