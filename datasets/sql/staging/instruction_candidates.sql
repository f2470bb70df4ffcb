-- Conversations as they were read, with the keys and lengths that the rules go by.
-- Images count as a part of the prompt; rows of one first image are one group, for the same words may ask of any image.
-- Grain: candidate (one conversation of a record).  Reads: items.  Parameters: none.
with spelled as (
    select
        record,
        part,
        task,
        named_group,
        messages,
        images,
        array_to_string([turn.role for turn in messages], ' ') as roles,
        coalesce(chr(28) || array_to_string(images, chr(28)), '') as pictures,
        array_to_string([turn.role || ': ' || turn.content for turn in messages], chr(30)) || pictures as whole,
        array_to_string([turn.role || ': ' || turn.content for turn in messages[:-2]], chr(30)) || pictures as prompt,
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
    images,
    roles,
    len(list_filter(messages, lambda turn: turn.role = 'user' and turn.content = '')) as empty_prompts,
    len(list_filter(messages, lambda turn: turn.role = 'assistant' and turn.content = '')) as empty_answers,
    coalesce(list_sum([length(turn.content) for turn in messages[:-2]]), 0)::bigint as prompt_chars,
    coalesce(length(messages[-1].content), 0) as answer_chars,
    sha256(whole) as exact_key,
    sha256(lower(trim(regexp_replace(nfc_normalize(whole), '[\s\p{Z}]+', ' ', 'g')))) as loose_key,
    sha256(lower(trim(regexp_replace(nfc_normalize(prompt), '[\s\p{Z}]+', ' ', 'g')))) as prompt_key,
    sha256(lower(trim(regexp_replace(nfc_normalize(coalesce(first_prompt, '')), '[\s\p{Z}]+', ' ', 'g')))) as first_prompt_key
from spelled
