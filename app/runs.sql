-- add: queue a run
insert into runs (id, tenant, origin, job) values ($1, $2, $3, $4) returning *

-- get: one run; $2 null: whoever's it is
select * from runs where id = $1 and ($2::text is null or tenant = $2)

-- list: the latest first, behind $3; $1 null: of all tenants; $4: what the clients' own metadata have, null: anything
select * from runs
where ($1::text is null or tenant = $1) and ($3::text is null or id < $3)
    and ($4::jsonb is null or job -> 'metadata' @> $4)
order by id desc limit $2

-- claim: the right to work on the oldest run, where nobody does or who did is silent since $1 seconds
update runs
set state = 'running', attempt = attempt + 1, seen_at = now(), started_at = coalesce(started_at, now())
where id = (select id from runs where state in ('queued', 'running') order by number limit 1)
    and (state = 'queued' or seen_at < now() - make_interval(secs => $1))
returning *

-- beat: say that it goes on; no row where another attempt has begun, or it ended
update runs set seen_at = now(), progress = coalesce($3, progress)
where id = $1 and attempt = $2 and state = 'running'
returning cancelling

-- lose: say that the process which worked on it is gone; no row where it ended before
update runs set seen_at = 'epoch' where id = $1 and attempt = $2 and state = 'running' returning id

-- unstart: give an attempt back for which no process could be started
update runs set
    state = 'queued', unstarted = unstarted + 1, seen_at = null,
    started_at = case when attempt - unstarted > 1 then started_at end
where id = $1 and attempt = $2 and state = 'running'

-- running: what is worked on
select * from runs where state = 'running' order by number limit 1

-- finish: no row where another attempt has begun; what it has borrowed stays known
update runs set
    state = $3, result = $4::jsonb || coalesce((select jsonb_build_object('gpus_lent', result -> 'gpus_lent')
        where result ? 'gpus_lent'), '{}'), error = $5, error_code = $6, finished_at = now()
where id = $1 and attempt = $2 and state = 'running'
returning id

-- lend: what a run has borrowed; {} for nothing
update runs set result = case when $2 = '{}'::jsonb then result - 'gpus_lent'
    else result || jsonb_build_object('gpus_lent', $2) end
where id = $1

-- lending: runs that have ended and did not give back
select * from runs where result ? 'gpus_lent' and state not in ('queued', 'running')

-- cancel: at once where nobody works on it, else as soon as it is noticed; no row where it has ended
update runs set
    cancelling = true,
    state = case when state = 'queued' then 'cancelled' else state end,
    finished_at = case when state = 'queued' then now() end
where id = $1 and tenant = $2 and state in ('queued', 'running')
returning *

-- begin: a stage
insert into run_stages (run_id, name, folder, key) values ($1, $2, $3, $4)
on conflict (run_id, name) do update
set folder = excluded.folder, key = excluded.key, started_at = now(), finished_at = null, counts = null

-- end: of a stage
update run_stages set counts = $3, dropped = $4, facts = $5, reused = $6, finished_at = now()
where run_id = $1 and name = $2

-- stages: in the order in which they began
select * from run_stages where run_id = $1 order by started_at, name

-- note: an event
insert into run_events (run_id, level, kind, text, data) values ($1, $2, $3, $4, $5)

-- events: the latest first, before $3
select * from run_events where run_id = $1 and ($3::bigint is null or id < $3) order by id desc limit $2

-- events_since: the oldest first, behind $2
select * from run_events where run_id = $1 and id > $2 order by id limit $3

-- taught: turns that somebody rated or corrected since the last run of any kind began
select count(distinct f.turn_id)
from feedback f join turns t on t.id = f.turn_id
where t.tenant = any($1::text[]) and (f.rating is not null or f.correction is not null)
    and f.updated_at > coalesce((select max(created_at) from runs), '-infinity')

-- latest: when the last run of some origins was asked for
select max(created_at) from runs where origin = any($1::text[])
