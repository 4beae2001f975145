-- Runs of the learning loop, and what their adapters must no longer know. Apply before the release that writes them.

create table runs (
    id text collate "C" primary key,    -- begins with the time of creation
    number bigint generated always as identity unique,      -- the order of the queue
    tenant text not null,
    origin text not null,               -- who asked: command, http, openai, schedule, threshold
    job jsonb not null,                 -- what is to be done
    state text not null default 'queued' check (state in ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    cancelling boolean not null default false,
    attempt int not null default 0,     -- how often it was begun; a process that works on an older one has lost it
    seen_at timestamptz,                -- the last word of the process that works on it
    progress jsonb,                     -- of the stage that runs
    result jsonb not null default '{}',
    error text,
    error_code text,
    created_at timestamptz not null default now(),
    started_at timestamptz,
    finished_at timestamptz
);
create index runs_of_tenant on runs (tenant, id);
create index runs_to_do on runs (number) where state in ('queued', 'running');

create table run_stages (
    run_id text not null references runs on delete cascade,
    name text not null,                 -- of the step: export, convert, convert.2, validate …
    folder text not null,               -- beneath the home folder
    key text not null,
    counts jsonb,                       -- null: it has not ended
    dropped jsonb,
    facts jsonb,
    reused boolean,                     -- it had been done before
    started_at timestamptz not null default now(),
    finished_at timestamptz,
    primary key (run_id, name)
);

create table run_events (
    id bigint generated always as identity primary key,
    run_id text not null references runs on delete cascade,
    at timestamptz not null default now(),
    level text not null check (level in ('info', 'warn', 'error')),
    kind text not null check (kind in ('message', 'metrics')),
    text text not null,
    data jsonb not null
);
create index run_events_of_run on run_events (run_id, id);

-- Turns that are gone, whose words data sets on disk may still hold. swept_at: they hold them no more.
create table deleted_turns (
    turn_id uuid primary key,
    deleted_at timestamptz not null default now(),
    swept_at timestamptz
);
create index deleted_turns_to_sweep on deleted_turns (turn_id) where swept_at is null;

-- Adapters that learnt from turns which are gone. They are promoted no more.
create table tainted_adapters (
    model text not null,
    version text not null,
    turns bigint not null,              -- how many of them
    since timestamptz not null default now(),
    primary key (model, version),
    foreign key (model, version) references adapters
);

-- Both ways round: what is deleted taints the adapters that there are, and an adapter that comes later, from a run that
-- had read what was deleted meanwhile, is tainted from the beginning. The lock lets neither miss the other.
create function taint() returns trigger language plpgsql as $$
declare
    changed bigint;
begin
    perform pg_advisory_xact_lock(7266883111);
    insert into deleted_turns (turn_id) select id from gone on conflict do nothing;
    insert into tainted_adapters (model, version, turns)
    select model, version, count(*)
    from adapters cross join lateral jsonb_array_elements_text(details -> 'turns') learnt
    where details ? 'turns' and learnt in (select id::text from gone)
    group by model, version
    on conflict (model, version) do update set turns = tainted_adapters.turns + excluded.turns;
    update serving set previous = null from tainted_adapters t
    where t.model = serving.model and t.version = serving.previous;
    if found then  -- a rollback leads to the bare base, and every process has to know
        update serving_revision set revision = revision + 1 returning revision into changed;
        perform pg_notify('mindfu_serving', changed::text);
    end if;
    return null;
end $$;
create trigger deleted_turns_taint after delete on turns
referencing old table as gone for each statement execute function taint();

create function taint_new() returns trigger language plpgsql as $$
begin
    perform pg_advisory_xact_lock(7266883111);
    insert into tainted_adapters (model, version, turns)
    select new.model, new.version, count(*)
    from jsonb_array_elements_text(new.details -> 'turns') learnt
    join deleted_turns on turn_id::text = learnt
    having count(*) > 0
    on conflict (model, version) do update set turns = excluded.turns;
    return null;
end $$;
create trigger new_adapter_is_tainted after insert on adapters
for each row when (new.details ? 'turns') execute function taint_new();
