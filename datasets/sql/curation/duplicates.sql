-- All but the first of the rows that are the same: byte for byte, as normalised text (NFC, white space, case), or in the prompt.
-- Near-duplicates (MinHash) and overlap with test sets belong after this table, as tables of the same shape.
-- Grain: candidate.  Reads: candidates, rules, contradictions, records.  Parameters: $duplicates.
with sound as (
    select
        candidates.candidate,
        candidates.exact_key,
        candidates.loose_key,
        candidates.prompt_key,
        records.place || ':' || records.line as origin
    from candidates
    inner join records on candidates.record = records.record
    anti join rules on candidates.candidate = rules.candidate
    anti join contradictions on candidates.candidate = contradictions.candidate
),

firsts as (
    select
        candidate,
        min(candidate) over (partition by exact_key) as first_exact,
        min(candidate) over (partition by loose_key) as first_loose,
        min(candidate) over (partition by prompt_key) as first_prompt
    from sound
),

doubled as (
    select
        candidate,
        case
            when first_exact < candidate then 'exact duplicate'
            when $duplicates <> 'exact' and first_loose < candidate then 'normalised duplicate'
            when $duplicates = 'prompt' and first_prompt < candidate then 'same prompt'
        end as rule,
        case
            when first_exact < candidate then first_exact
            when $duplicates <> 'exact' and first_loose < candidate then first_loose
            else first_prompt
        end as original
    from firsts
)

select
    doubled.candidate,
    doubled.rule || ': ' || sound.origin as reason
from doubled
inner join sound on doubled.original = sound.candidate
where doubled.rule is not null
