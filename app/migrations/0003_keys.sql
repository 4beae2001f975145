-- API keys, and what limits them. Apply before the release that writes them.

create table keys (
    id text primary key,
    tenant text not null,
    name text not null,
    digest bytea not null,              -- HMAC-SHA-256 of the secret; the secret itself is nowhere
    scopes text[] not null,
    requests_per_minute int,            -- null: no limit
    tokens_per_minute int,
    streams int,                        -- requests at the same time
    created_at timestamptz not null default now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz            -- to the minute
);

create index turns_of_key on turns ((extras ->> 'key_id')) where extras ? 'key_id';

-- Counters are not worth a write-ahead log: a crash empties them, and lets each key spend one minute's limit again.
create unlogged table key_minutes (
    key_id text not null,
    minute timestamptz not null,
    requests int not null default 0,
    tokens bigint not null default 0,
    primary key (key_id, minute)
);
create unlogged table key_streams (
    request_id text primary key,
    key_id text not null,
    until timestamptz not null          -- a gateway that died cannot say that its requests are over
);
create index key_streams_of_key on key_streams (key_id);
