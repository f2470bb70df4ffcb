-- Every pair there is, with the keys and lengths that the rules go by.
-- Images count as a part of the prompt; rows of one first image are one group, for the same words may ask of any image.
-- Grain: candidate (one pair).  Reads: given_pairs, ranked_pairs, labelled_pairs.  Parameters: none.
with together as (
    select * from given_pairs
    union all
    select * from ranked_pairs
    union all
    select * from labelled_pairs
),

spelled as (
    select
        *,
        array_to_string([turn.role for turn in prompt], ' ') as roles,
        array_to_string([turn.role || ': ' || turn.content for turn in prompt], chr(30))
        || coalesce(chr(28) || array_to_string(images, chr(28)), '') as whole,
        coalesce(images[1], list_filter(prompt, lambda turn: turn.role = 'user')[1].content) as first_prompt
    from together
),

keyed as (
    select
        *,
        sha256(lower(trim(regexp_replace(nfc_normalize(whole), '[\s\p{Z}]+', ' ', 'g')))) as prompt_key,
        sha256(lower(trim(regexp_replace(nfc_normalize(chosen), '[\s\p{Z}]+', ' ', 'g')))) as chosen_key,
        sha256(lower(trim(regexp_replace(nfc_normalize(rejected), '[\s\p{Z}]+', ' ', 'g')))) as rejected_key,
        sha256(lower(trim(regexp_replace(nfc_normalize(coalesce(first_prompt, '')), '[\s\p{Z}]+', ' ', 'g')))) as first_prompt_key
    from spelled
)

select
    row_number() over (order by record, part, nth) as candidate,
    record,
    other_record,
    part,
    task,
    named_group,
    prompt,
    coalesce(prompt <> rejected_prompt, false) as prompt_differs,
    chosen,
    rejected,
    chosen_score,
    rejected_score,
    margin,
    images,
    roles,
    len(list_filter(prompt, lambda turn: turn.role = 'user' and turn.content = '')) as empty_prompts,
    len(list_filter(prompt, lambda turn: turn.role = 'assistant' and turn.content = '')) as empty_answers,
    coalesce(list_sum([length(turn.content) for turn in prompt]), 0)::bigint as prompt_chars,
    length(chosen) as chosen_chars,
    length(rejected) as rejected_chars,
    sha256(whole || chr(29) || chosen || chr(29) || rejected) as exact_key,
    sha256(prompt_key || chosen_key || rejected_key) as loose_key,
    prompt_key,
    chosen_key,
    rejected_key,
    first_prompt_key
from keyed
