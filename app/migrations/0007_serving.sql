-- Which adapters there are, which of them are served, and what every process holds. Apply before the release that
-- reads them.

create table adapters (
    model text not null,                -- the served name of its base
    version text not null,              -- never used again, not even after it was retired
    path text not null,                 -- of the GGUF: absolute, or beneath the home folder
    sha256 text not null,               -- of the GGUF, hexadecimal
    size bigint not null,
    verdict text check (verdict in ('passed', 'blocked')),  -- of the gates; null: never evaluated
    reasons text[] not null default '{}',                   -- why they blocked it
    details jsonb not null default '{}',                    -- where it came from
    created_at timestamptz not null default now(),
    retired_at timestamptz,
    primary key (model, version)
);

create table serving (                  -- the desired state: one row a model whose adapters were ever promoted
    model text primary key,
    champion text,                      -- answers for the model's name; null: the bare base
    previous text,                      -- stays loaded, so that going back takes no time
    staged text,                        -- is to be loaded, because it will be promoted
    foreign key (model, champion) references adapters (model, version),
    foreign key (model, previous) references adapters (model, version),
    foreign key (model, staged) references adapters (model, version)
);

create table serving_revision (         -- of both tables above; one row
    one boolean primary key default true check (one),
    revision bigint not null
);

create table serving_changes (          -- who changed what, and why
    revision bigint primary key,
    at timestamptz not null default now(),
    kind text not null,
    model text not null,
    version text,                       -- that answers from then on
    before text,                        -- that answered until then
    forced boolean not null default false,
    reason text
);

-- What is told every two seconds by who is alive is not worth a write-ahead log.
create unlogged table serving_members (
    id uuid primary key,
    part text not null,                 -- gateway or engine
    revision bigint not null,           -- that it has taken in
    models jsonb not null,              -- of an engine: what is loaded and what does not load, by model
    seen_at timestamptz not null default now()
);
