-- insert: keep a key
insert into keys (
    id, tenant, name, digest, scopes, requests_per_minute, tokens_per_minute, streams, expires_at
) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
returning *

-- find: a key by its id
select * from keys where id = $1

-- list: all keys with what was spent on each, the oldest first
select keys.*, coalesce(spent.turns, 0) as turns, coalesce(spent.tokens, 0) as tokens
from keys
left join (
    select extras ->> 'key_id' as key_id, count(*) as turns,
        sum(coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0)) as tokens
    from turns where extras ? 'key_id' group by 1
) spent on spent.key_id = keys.id
order by created_at, id

-- revoke: end a key; one that was revoked stays so
update keys set revoked_at = coalesce(revoked_at, now()) where id = $1 returning *

-- touch: say that a key was used
update keys set last_used_at = now() where id = $1

-- any: whether a key was ever made; the end of the last one must not open the door
select exists (select from keys)

-- lock: keep other requests of a key waiting, to the end of the transaction
select pg_advisory_xact_lock(hashtextextended($1, 7266883107))

-- standing: what a key does at this moment, and did in this minute
with over as (delete from key_streams where key_id = $1 and until < now())
select
    (select count(*) from key_streams where key_id = $1 and until >= now()) as streams,
    coalesce(sum(requests), 0) as requests,
    coalesce(sum(tokens), 0) as tokens,
    extract(epoch from date_trunc('minute', now()) + interval '1 minute' - now())::float8 as reset_s
from key_minutes
where key_id = $1 and minute = date_trunc('minute', now())

-- enter: count a request
with begun as (
    insert into key_streams (request_id, key_id, until)
    values ($2, $1, now() + make_interval(secs => $3))
    on conflict (request_id) do nothing
)
insert into key_minutes (key_id, minute, requests) values ($1, date_trunc('minute', now()), 1)
on conflict (key_id, minute) do update set requests = key_minutes.requests + 1

-- leave: a request is over
delete from key_streams where request_id = $1

-- charge: count tokens, and forget what is long past
with past as (delete from key_minutes where key_id = $1 and minute < now() - interval '1 hour')
insert into key_minutes (key_id, minute, tokens) values ($1, date_trunc('minute', now()), $2)
on conflict (key_id, minute) do update set tokens = key_minutes.tokens + excluded.tokens
