-- Texts with nothing to read, or too much of it.
-- Grain: candidate.  Reads: candidates.  Parameters: $max_text_chars.
with judged as (
    select
        candidate,
        case
            when text_chars = 0 then 'empty text'
            when text_chars > $max_text_chars then 'over-long text'
        end as reason
    from candidates
)

select
    candidate,
    reason
from judged
where reason is not null
