-- The prompts: what is kept, in the order it came.
-- Grain: candidate.  Reads: candidates, conversations, records.  Parameters: none.
select
    candidates.candidate as place,
    left(candidates.exact_key, 16) as id,
    conversations.conversation,
    candidates.task,
    candidates.messages as prompt,
    candidates.reference,
    candidates.images,
    records.place as source,
    records.line
from candidates
inner join conversations on candidates.candidate = conversations.candidate
inner join records on candidates.record = records.record
