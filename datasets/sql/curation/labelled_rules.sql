-- Labelled rows that no head can learn from, each with the first rule it breaks.  A question without answers is kept: its context
-- does not answer it.
-- Grain: candidate.  Reads: candidates.  Parameters: $max_text_chars.
with judged as (
    select
        candidate,
        case
            when form = 'classes' and text = '' then 'empty text'
            when form = 'classes' and pair = '' then 'empty text: the second'
            when form = 'classes' and label = '' then 'no label'
            when form = 'tags' and len(tokens) = 0 then 'empty text'
            when form = 'tags' and len(tokens) <> len(tags)
                then 'not as many tags as tokens: ' || len(tags) || ' tags, ' || len(tokens) || ' tokens'
            when form = 'tags' and len(list_filter(tokens, lambda token: trim(token) = '')) > 0 then 'empty token'
            when form = 'tags' and len(list_filter(tags, lambda tag: tag = '')) > 0 then 'empty tag'
            when form = 'tags' and len(list_filter(tags, lambda tag: regexp_matches(tag, '\s'))) > 0 then 'white space in a tag'
            when form = 'questions' and trim(context) = '' then 'empty text'
            when form = 'questions' and question = '' then 'empty question'
            when form = 'questions' and len(list_filter(answers, lambda span: trim(span.text) = '')) > 0 then 'empty answer'
            when
                form = 'questions'
                and len(
                    list_filter(
                        answers,
                        lambda span: span.start < 0 or substr(context, span.start + 1, length(span.text)) <> span.text
                    )
                ) > 0 then 'answer not found in context'
            when text_chars > $max_text_chars then 'over-long text'
        end as reason
    from candidates
)

select
    candidate,
    reason
from judged
where reason is not null
