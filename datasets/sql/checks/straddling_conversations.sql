-- Must be empty: conversations with rows on both sides of the split.
-- Grain: conversation.  Reads: kept.  Parameters: none.
select conversation from kept
group by conversation
having bool_or(is_heldout) and not bool_and(is_heldout)
