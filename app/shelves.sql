-- make: a shelf
insert into shelves (id, tenant, name, description, metadata, created_at, active_at, expires_days)
values ($1, $2, $3, $4, $5, $6, $6, $7)

-- shelves: a tenant's, the oldest first, with their counts; $2: one of them
select s.*,
    s.active_at + make_interval(days => s.expires_days) as expires_at,
    count(*) filter (where f.status = 'in_progress') as in_progress,
    count(*) filter (where f.status = 'completed' and f.document_id is not null) as completed,
    count(*) filter (where f.status = 'failed' or (f.status = 'completed' and f.document_id is null)) as failed,
    count(*) filter (where f.status = 'cancelled') as cancelled,
    coalesce(sum(f.bytes) filter (where f.status = 'completed'), 0)::bigint as bytes
from shelves s left join shelved f on f.shelf_id = s.id and f.status <> 'leaving'
where s.tenant = $1 and ($2::text is null or s.id = $2) and not s.deleted
group by s.id
order by s.id

-- modify: a shelf; what is null stays, but for the expiry where $6 says so
update shelves
set name = coalesce($3, name), metadata = coalesce($4::jsonb, metadata),
    expires_days = case when $6 then $5 else expires_days end, active_at = now()
where tenant = $1 and id = $2 and not deleted

-- delete_shelf: hide it; its files leave, and then it goes
update shelves set deleted = true where tenant = $1 and id = $2 and not deleted returning id

-- clear_shelf: all of its files leave
update shelved set status = 'leaving', asked_at = clock_timestamp() where shelf_id = $1 and status <> 'leaving'

-- active: a shelf was used; not more often than it matters
update shelves set active_at = now() where id = $1 and active_at < now() - interval '1 minute'

-- shelve: put files on a shelf, or put them there anew
insert into shelved (
    shelf_id, upload_id, batch_id, name, attributes, chunk_tokens, overlap_tokens, status, created_at
)
select $1, unnest($2::text[]), $3, unnest($4::text[]), unnest($5::jsonb[]), unnest($6::int[]), unnest($7::int[]),
    'in_progress', $8
on conflict (shelf_id, upload_id) do update set
    batch_id = excluded.batch_id, name = excluded.name, attributes = excluded.attributes,
    chunk_tokens = excluded.chunk_tokens, overlap_tokens = excluded.overlap_tokens,
    status = case when shelved.status = 'completed' and shelved.document_id is not null
            and (shelved.chunk_tokens, shelved.overlap_tokens)
                is not distinct from (excluded.chunk_tokens, excluded.overlap_tokens)
        then 'completed' else 'in_progress' end,    -- what is there as it should be stays findable
    error_code = null, error = null, created_at = excluded.created_at, asked_at = clock_timestamp()

-- shelved: the files of a shelf, the oldest first; $2: one of them, $3: those of a batch
select f.* from shelved f
where f.shelf_id = $1 and ($2::text is null or f.upload_id = $2) and ($3::text is null or f.batch_id = $3)
  and f.status <> 'leaving'
order by f.created_at, f.upload_id

-- attribute: say anew what is true of a file
update shelved set attributes = $3 where shelf_id = $1 and upload_id = $2 and status <> 'leaving'

-- leave: a file leaves a shelf
update shelved set status = 'leaving', asked_at = clock_timestamp()
where shelf_id = $1 and upload_id = $2 and status <> 'leaving'
returning upload_id

-- batch: files that were put on a shelf together
insert into shelf_batches (id, shelf_id, created_at) values ($1, $2, $3)

-- batches: one of a shelf's
select * from shelf_batches where shelf_id = $1 and id = $2

-- cancel: what of a batch is not done yet
with cancelled as (update shelf_batches set cancelled = true where id = $1)
update shelved set status = 'cancelled', asked_at = clock_timestamp() where batch_id = $1 and status = 'in_progress'
