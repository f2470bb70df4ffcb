-- How often each label, or tag, or answerable and unanswerable question, occurs on either side of the split.
-- Grain: label.  Reads: kept.  Parameters: none.
with labels as (
    select
        is_heldout,
        unnest(
            case form
                when 'classes' then [label]
                when 'tags' then tags
                else [if(len(answers) = 0, '(no answer)', '(answer)')]
            end
        ) as label
    from kept
)

select
    label,
    count(*) filter (where not is_heldout) as train,
    count(*) filter (where is_heldout) as heldout
from labels
group by label
order by train desc, label asc
