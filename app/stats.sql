-- conversations: and their turns
select
    (select count(*) from conversations where $1::text is null or tenant = $1) as conversations,
    count(*) as turns,
    count(*) filter (where extras ? 'imported') as imported_turns,
    count(*) filter (where status <> 'complete') as turns_not_complete,
    coalesce(sum(prompt_tokens), 0)::bigint as prompt_tokens,
    coalesce(sum(completion_tokens), 0)::bigint as completion_tokens,
    (select count(*) from feedback join turns of on of.id = turn_id where $1::text is null or of.tenant = $1)
        as judgements
from turns
where $1::text is null or tenant = $1

-- memory: what is remembered, and what waits for it
select
    count(*) filter (where memories.chunks > 0) as remembered_turns,
    coalesce(sum(memories.chunks), 0)::bigint as chunks,
    count(unremembered.turn_id) as waiting,
    count(unremembered.turn_id) filter (where failures > 0) as waiting_after_failures,
    (select count(*) from forgotten where $1::text is null or tenant = $1) as to_clear
from turns
left join memories on memories.turn_id = turns.id
left join unremembered on unremembered.turn_id = turns.id
where $1::text is null or tenant = $1

-- documents: that are ready, and their chunks
select count(*) as documents, coalesce(sum(chunks), 0)::bigint as chunks, coalesce(sum(size), 0)::bigint as bytes
from documents
where state = 'ready' and ($1::text is null or tenant = $1)

-- files: that were uploaded, and the vector stores that they are on
select count(*) as files, coalesce(sum(bytes), 0)::bigint as bytes,
    (select count(*) from shelves where not deleted and ($1::text is null or tenant = $1)) as vector_stores
from uploads
where ($1::text is null or tenant = $1) and (expires_at is null or expires_at > now())

-- collections: their chunks
select collection, sum(chunks)::bigint as chunks
from documents
where state = 'ready' and ($1::text is null or tenant = $1)
group by collection order by collection

-- database_size: bytes
select pg_database_size(current_database())
