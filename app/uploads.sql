-- keep: keep a file
insert into uploads (id, tenant, name, media_type, purpose, bytes, created_at, expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)

-- keep_bytes: and what is in it
insert into upload_bytes (upload_id, data) values ($1, $2)

-- all: a tenant's files, the oldest first
select * from uploads
where tenant = $1 and ($2::text is null or purpose = $2) and (expires_at is null or expires_at > now())
order by id

-- several: some of a tenant's files
select * from uploads where tenant = $1 and id = any($2::text[]) and (expires_at is null or expires_at > now())

-- content: of a file
select data from upload_bytes where upload_id = $1

-- take_off: a file leaves all shelves
update shelved set status = 'leaving', asked_at = clock_timestamp()
from shelves
where shelves.id = shelf_id and shelves.tenant = $1 and upload_id = $2

-- delete: the file itself
delete from uploads where tenant = $1 and id = $2 returning id
