-- Texts as they were read, with the keys and lengths that the rules go by.
-- Grain: candidate (one text).  Reads: items.  Parameters: none.
select
    row_number() over (order by record, part) as candidate,
    record,
    null::bigint as other_record,
    part,
    task,
    named_group,
    text as body,
    length(text) as text_chars,
    sha256(text) as exact_key,
    sha256(lower(trim(regexp_replace(nfc_normalize(text), '[\s\p{Z}]+', ' ', 'g')))) as loose_key,
    loose_key as prompt_key,
    loose_key as first_prompt_key
from items
