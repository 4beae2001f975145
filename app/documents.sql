-- try_lock: the right to work on a content, until unlocked or disconnected; false when somebody has it
select pg_try_advisory_lock($1)

-- of_content: what a collection holds of a content
select * from documents where tenant = $1 and collection = $2 and sha256 = $3

-- begin: a row before anything else is written; a dead attempt's row is taken over, with its id
insert into documents (
    id, tenant, collection, sha256, size, name, title, media_type, metadata, chunks, state, created_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'ingesting', $11)
on conflict (tenant, collection, sha256) do update set
    size = excluded.size, name = excluded.name, title = excluded.title, media_type = excluded.media_type,
    metadata = excluded.metadata, chunks = excluded.chunks, created_at = excluded.created_at
where documents.state = 'ingesting'
returning *

-- move: into another state; no row when there is no such document
update documents set state = $2 where id = $1 returning id

-- remove: the last trace
delete from documents where id = $1

-- document: one of a tenant's, in any state
select * from documents where tenant = $1 and id = $2

-- newest: what is ready, newest first, behind the id in $3
select * from documents
where tenant = $1 and state = 'ready' and ($2::text is null or collection = $2) and ($3::text is null or id < $3)
order by id desc
limit $4

-- unfinished: what is being worked on, or was when a process ended
select * from documents where state <> 'ready' order by id
