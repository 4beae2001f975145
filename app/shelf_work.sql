-- expired_uploads: whose time is over
select tenant, id from uploads where expires_at <= now() limit 100

-- try_lock: the right to do this work, until disconnected; false when somebody has it
select pg_try_advisory_lock($1)

-- to_do: files that are to come or to leave, the one that waits longest first
select f.*, s.tenant, u.media_type, (u.id is not null) as uploaded
from shelved f
join shelves s on s.id = f.shelf_id
left join uploads u on u.id = f.upload_id and (u.expires_at is null or u.expires_at > now())
where f.status in ('in_progress', 'leaving')
order by f.asked_at
limit $1

-- sharers: how many other files of a shelf are the same document
select count(*) from shelved
where shelf_id = $1 and document_id = $2 and upload_id <> $3 and status <> 'leaving'

-- came: a file is on its shelf; no row where it was asked for anew or left meanwhile
update shelved set status = 'completed', document_id = $4, bytes = $5
where shelf_id = $1 and upload_id = $2 and asked_at = $3 and status = 'in_progress'
returning upload_id

-- failed: a file cannot be put on its shelf
update shelved set status = 'failed', error_code = $4, error = $5, document_id = null
where shelf_id = $1 and upload_id = $2 and asked_at = $3 and status = 'in_progress'

-- disown: note that a document is gone
update shelved set document_id = null where shelf_id = $1 and upload_id = $2

-- left: nothing is left of a file on a shelf
delete from shelved where shelf_id = $1 and upload_id = $2 and status = 'leaving'

-- expire_shelves: files of those whose time is over leave
update shelved set status = 'leaving', asked_at = clock_timestamp()
from shelves
where shelves.id = shelf_id and not deleted and expires_days is not null and status <> 'leaving'
  and active_at + make_interval(days => expires_days) <= now()

-- empty: shelves that were deleted and are empty
select id, tenant from shelves where deleted and not exists (select from shelved where shelf_id = shelves.id) limit 100

-- sweep: such a shelf itself
delete from shelves where id = $1 and deleted
