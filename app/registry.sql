-- revision: of the desired state
select coalesce(max(revision), 0) from serving_revision

-- desired: all of it at one moment
select
    (select coalesce(max(revision), 0) from serving_revision) as revision,
    (
        select coalesce(
            jsonb_agg(to_jsonb(s) || jsonb_build_object(
                'trial', (select to_jsonb(t) - 'model' from trials t where t.model = s.model)
            ) order by s.model), '[]'
        )
        from serving s
    )::text as servings,
    (
        select coalesce(jsonb_agg(to_jsonb(a) - 'retired_at' - 'details' order by a.created_at, a.version), '[]')
        from adapters a where retired_at is null
    )::text as adapters,
    coalesce((select (to_jsonb(c) - 'one')::text from serving_control c), '{}') as control

-- change: count a change of the desired state, which keeps other changes waiting to the end of the transaction
insert into serving_revision (revision) values (1)
on conflict (one) do update set revision = serving_revision.revision + 1
returning revision

-- note: say who changed what
insert into serving_changes (revision, kind, model, version, before, forced, reason, share)
values ($1, $2, $3, $4, $5, $6, $7, $8)

-- notify: tell every process
select pg_notify('mindfu_serving', $1::text)

-- changes: of a model, the latest first
select revision, at, kind, model, version, before, forced, reason, share
from serving_changes where model = $1 order by revision desc limit $2

-- add: keep an adapter; no row when its name was used already
insert into adapters (model, version, path, sha256, size, verdict, reasons, details)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict do nothing
returning version

-- adapter: one by its name, retired ones too
select to_jsonb(a)::text as adapter from adapters a where model = $1 and version = $2

-- trainings: what the adapters that may be served were trained on, as far as anybody knows
select model, version, details ->> 'data' as data, jsonb_array_length(details -> 'conversations') as conversations
from adapters
where retired_at is null and jsonb_typeof(details -> 'conversations') = 'array' and details ? 'data'

-- judge: keep what the gates said
update adapters set verdict = $3, reasons = $4 where model = $1 and version = $2 returning version

-- tainted: from how many turns that are gone an adapter learnt; no row where from none
select turns from tainted_adapters where model = $1 and version = $2

-- retire: serve an adapter no longer; no row where there is none
update adapters set retired_at = coalesce(retired_at, now()) where model = $1 and version = $2 returning version

-- serving: what is served of a model
select (
    to_jsonb(s) || jsonb_build_object('trial', (select to_jsonb(t) - 'model' from trials t where t.model = s.model))
)::text
from serving s where s.model = $1

-- stage: have an adapter loaded
insert into serving (model, staged) values ($1, $2)
on conflict (model) do update set staged = excluded.staged

-- serve: let an adapter answer
insert into serving (model, champion, previous) values ($1, $2, $3)
on conflict (model) do update set champion = excluded.champion, previous = excluded.previous, staged = null

-- end_trial: have no adapter on trial
delete from trials where model = $1

-- try_out: have an adapter on trial
insert into trials (model, version, kind, share, since) values ($1, $2, $3, $4, $5)

-- report: say that one is alive, and what it holds
insert into serving_members (id, part, revision, models) values ($1, $2, $3, $4)
on conflict (id) do update set revision = excluded.revision, models = excluded.models, seen_at = now()

-- leave: say that one ends, and forget those that could not say it
delete from serving_members where id = $1 or seen_at < now() - interval '1 hour'

-- members: those that are alive
select part, revision, models::text as models from serving_members
where seen_at > now() - make_interval(secs => $1) order by part, id

-- try_lock: take the right to promote a model, as long as the connection lasts
select pg_try_advisory_lock(hashtextextended($1, 7266883108))

-- unlock: give it back
select pg_advisory_unlock(hashtextextended($1, 7266883108))
