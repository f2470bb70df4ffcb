-- Labelled rows as they were read, with the keys and lengths that the rules go by.  Labels given as numbers get their names.
-- Three forms: classes (text, pair, label), tags (tokens, tags), questions (question, context, spans).
-- Grain: candidate (one labelled thing of a record).  Reads: items.  Parameters: $names.
with named as (
    select
        record,
        part,
        task,
        named_group,
        text,
        pair,
        tokens,
        question,
        context,
        case
            when question is not null then 'questions'
            when tokens is not null then 'tags'
            else 'classes'
        end as form,
        case
            when len($names::varchar[]) = 0 or try_cast(label as integer) is null then label
            else coalesce(($names::varchar[])[try_cast(label as integer) + 1], label)
        end as label,
        [
            case
                when len($names::varchar[]) = 0 or try_cast(tag as integer) is null then tag
                else coalesce(($names::varchar[])[try_cast(tag as integer) + 1], tag)
            end
            for tag in tags
        ] as tags,
        [
            struct_pack(text := span.text, start := coalesce(span.start, instr(context, span.text) - 1))
            for span in spans
        ] as answers
    from items
),

spelled as (
    select
        *,
        case form
            when 'classes' then text || chr(29) || coalesce(pair, '')
            when 'tags' then array_to_string(tokens, chr(30))
            else question || chr(29) || context
        end as whole,
        case form
            when 'classes' then label
            when 'tags' then array_to_string(tags, chr(30))
            else array_to_string([span.start::varchar || chr(29) || span.text for span in answers], chr(30))
        end as wanted,
        case form
            when 'classes' then text
            when 'tags' then array_to_string(tokens, ' ')
            else context
        end as shared
    from named
),

keyed as (
    select
        *,
        if(form = 'classes', lower(trim(regexp_replace(nfc_normalize(whole), '[\s\p{Z}]+', ' ', 'g'))), whole) as loose
    from spelled
)

select
    row_number() over (order by record, part) as candidate,
    record,
    null::bigint as other_record,
    part,
    task,
    named_group,
    form,
    text,
    pair,
    label,
    tokens,
    tags,
    question,
    context,
    answers,
    length(whole) as text_chars,
    sha256(form || chr(28) || whole || chr(28) || wanted) as exact_key,
    sha256(form || chr(28) || loose || chr(28) || wanted) as loose_key,
    sha256(form || chr(28) || loose) as prompt_key,
    sha256(wanted) as wanted_key,
    sha256(lower(trim(regexp_replace(nfc_normalize(shared), '[\s\p{Z}]+', ' ', 'g')))) as first_prompt_key
from keyed
