-- One step of joining: rows that share a first turn, or the conversation id their source gives them, take the smaller name.
-- Built again until nothing changes.  Grain: candidate.  Reads: conversations.  Parameters: none.
select
    candidate,
    first_prompt_key,
    named_group,
    least(
        min(conversation) over (partition by first_prompt_key),
        min(conversation) over (partition by coalesce(named_group, 'of its own: ' || candidate))
    ) as conversation
from conversations
