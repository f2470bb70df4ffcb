-- Every liked or disliked answer there is, with the keys and lengths that the rules go by.  Labels say it of one answer;
-- of a pair the chosen one is liked and the other is not; of several scored answers the best is liked and the worst is not.
-- Images count as a part of the prompt; rows of one first image are one group, for the same words may ask of any image.
-- Grain: candidate (one answer).  Reads: items, given_pairs, ranked_pairs.  Parameters: $max_answer_chars.
with paired as (
    select * from given_pairs
    union all
    select * from ranked_pairs
    where nth = 1
),

together as (
    select
        record,
        part,
        1 as side,
        task,
        named_group,
        messages as prompt,
        answer,
        liked,
        null::varchar as other_answer,
        null::double as gap,
        null::double as margin,
        images
    from items
    where answer is not null
    union all
    select
        record,
        part,
        1 as side,
        task,
        named_group,
        prompt,
        chosen as answer,
        true as liked,
        rejected as other_answer,
        chosen_score - rejected_score as gap,
        margin,
        images
    from paired
    union all
    select
        record,
        part,
        2 as side,
        task,
        named_group,
        coalesce(rejected_prompt, prompt) as prompt,
        rejected as answer,
        false as liked,
        chosen as other_answer,
        chosen_score - rejected_score as gap,
        margin,
        images
    from paired
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
        sha256(lower(trim(regexp_replace(nfc_normalize(answer), '[\s\p{Z}]+', ' ', 'g')))) as whole_answer_key,
        sha256(
            lower(trim(regexp_replace(nfc_normalize(left(answer, $max_answer_chars)), '[\s\p{Z}]+', ' ', 'g')))
        ) as answer_key,
        sha256(lower(trim(regexp_replace(nfc_normalize(coalesce(first_prompt, '')), '[\s\p{Z}]+', ' ', 'g')))) as first_prompt_key
    from spelled
)

select
    row_number() over (order by record, part, side) as candidate,
    record,
    null::bigint as other_record,
    part,
    task,
    named_group,
    prompt,
    answer,
    liked,
    other_answer,
    gap,
    margin,
    images,
    roles,
    len(list_filter(prompt, lambda turn: turn.role = 'user' and turn.content = '')) as empty_prompts,
    len(list_filter(prompt, lambda turn: turn.role = 'assistant' and turn.content = '')) as empty_answers,
    coalesce(list_sum([length(turn.content) for turn in prompt]), 0)::bigint as prompt_chars,
    length(answer) as answer_chars,
    sha256(whole || chr(29) || answer || chr(29) || liked) as exact_key,
    sha256(prompt_key || whole_answer_key || liked) as loose_key,
    prompt_key,
    answer_key,
    first_prompt_key
from keyed
