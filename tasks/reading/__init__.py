"""From files people have to records we can judge: compression, encoding, format, then schema.

One rule: nothing is lost on the way.  What is read is a record, with the line it starts on and its raw text; what cannot be
understood is a record too, with the reason; a file that cannot be read to its end is one DataError.

    spec.py           what a plan says about a source
    compression.py    gzip, zstd, bz2, xz, told by their first bytes
    encoding.py       which encoding the bytes are in, or one clear error, never mojibake
    jsonfiles.py      JSON Lines, arrays and documents, one record at a time
    tables.py         CSV and TSV, Parquet, Hugging Face data sets
    sources.py        puts these together: a source becomes records (record.py)
    turns.py          roles and turns in all their spellings
    rows.py           what a record can say, and the columns that all schemas share
    conversations.py  instructions, prompts and texts
    comparisons.py    preferences
    images.py         images of a record: found, checked, kept under their digest
    labelled.py       labelled texts, tagged tokens, questions with contexts
    schemas.py        which of these a record is, by its columns
    load.py           records and what they say, in batches into DuckDB
"""
