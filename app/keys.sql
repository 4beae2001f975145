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

-- enter: count a request, unless that would go over a limit
select * from enter_request($1, $2, $3, $4, $5, $6)

-- leave: a request is over
delete from key_streams where request_id = $1

-- charge: count tokens
insert into key_minutes (key_id, minute, tokens) values ($1, date_trunc('minute', now()), $2)
on conflict (key_id, minute) do update set tokens = key_minutes.tokens + excluded.tokens
