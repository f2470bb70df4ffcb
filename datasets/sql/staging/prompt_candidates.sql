-- Prompts as they were read, with the keys and lengths that the rules go by.
-- Images count as a part of the prompt; rows of one first image are one group, for the same words may ask of any image.
-- Grain: candidate (one prompt of a record).  Reads: items.  Parameters: none.
with spelled as (
    select
        record,
        part,
        task,
        named_group,
        messages,
        reference,
        images,
        array_to_string([turn.role for turn in messages], ' ') as roles,
        array_to_string([turn.role || ': ' || turn.content for turn in messages], chr(30))
        || coalesce(chr(28) || array_to_string(images, chr(28)), '') as whole,
        coalesce(images[1], list_filter(messages, lambda turn: turn.role = 'user')[1].content) as first_prompt
    from items
)

select
    row_number() over (order by record, part) as candidate,
    record,
    null::bigint as other_record,
    part,
    task,
    named_group,
    messages,
    reference,
    images,
    roles,
    len(list_filter(messages, lambda turn: turn.role = 'user' and turn.content = '')) as empty_prompts,
    len(list_filter(messages, lambda turn: turn.role = 'assistant' and turn.content = '')) as empty_answers,
    coalesce(list_sum([length(turn.content) for turn in messages]), 0)::bigint as prompt_chars,
    sha256(whole) as exact_key,
    sha256(lower(trim(regexp_replace(nfc_normalize(whole), '[\s\p{Z}]+', ' ', 'g')))) as loose_key,
    loose_key as prompt_key,
    sha256(lower(trim(regexp_replace(nfc_normalize(coalesce(first_prompt, '')), '[\s\p{Z}]+', ' ', 'g')))) as first_prompt_key
from spelled
