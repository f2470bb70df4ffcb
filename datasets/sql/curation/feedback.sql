-- The feedback: what is kept, held out by conversation and seed, so that a row stays on its side when others are added.
-- Grain: candidate.  Reads: candidates, conversations, records.  Parameters: $seed, $heldout.
select
    candidates.candidate as place,
    left(candidates.exact_key, 16) as id,
    conversations.conversation,
    candidates.task,
    candidates.prompt,
    candidates.answer,
    candidates.liked,
    candidates.images,
    records.place as source,
    records.line,
    (
        '0x' || left(sha256($seed::varchar || ':' || conversations.conversation), 13)
    )::bigint / 4503599627370496.0 < $heldout as is_heldout
from candidates
inner join conversations on candidates.candidate = conversations.candidate
inner join records on candidates.record = records.record
