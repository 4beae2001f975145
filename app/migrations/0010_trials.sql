-- Adapters on trial beside the champion, and what they said unseen. Apply before the release that reads them.

create table trials (                   -- one a model, part of the desired state
    model text primary key,
    version text not null,
    kind text not null check (kind in ('canary', 'shadow')),
    share double precision not null check (share > 0 and share <= 1),   -- of the conversations
    since timestamptz not null default now(),
    foreign key (model, version) references adapters (model, version)
);

alter table serving_changes add column share double precision;          -- of a trial that began

create table shadows (                  -- what an adapter on trial would have answered in the place of a turn's answer
    turn_id uuid not null references turns on delete cascade,
    adapter text not null,
    answer jsonb not null,
    status text not null check (status in ('complete', 'truncated', 'failed')),
    error text,
    completion_tokens bigint,
    latency_s double precision not null,
    created_at timestamptz not null default now(),
    primary key (turn_id, adapter)
);
create index shadows_by_adapter on shadows (adapter, created_at);

-- How the answers of an adapter are is asked every few seconds while it is watched.
create index turns_by_adapter on turns (model, (coalesce(adapter, '')), created_at);
