-- Conversations: forests of turns, a turn keeping only what is new. Apply before the release that writes them.
-- Text holds no NUL, which PostgreSQL refuses: app/nul.py writes it in another way, and reads it back.

create table conversations (
    id uuid primary key,
    tenant text not null,
    title text not null,                -- the beginning of the first user message
    created_at timestamptz not null,
    updated_at timestamptz not null     -- of the latest turn
);
create index conversations_by_recency on conversations (tenant, updated_at desc, id desc);

create table turns (
    id uuid primary key,
    number bigint generated always as identity unique,              -- the order of recording
    conversation_id uuid not null references conversations on delete cascade,
    parent_id uuid references turns on delete cascade,              -- null: nothing that we recorded came before
    tenant text not null,
    request_id text not null,
    chain bytea,                -- canonical history, answer included; null: an empty answer, nothing can follow it
    exact bytea not null,       -- the same history to the letter
    depth int not null,         -- messages of that history, system prompts excluded
    messages jsonb not null,    -- the new ones, system prompts excluded
    resent jsonb not null,      -- earlier messages that the client sent otherwise than we know them: {index: message}
    answer jsonb not null,
    model text not null,
    adapter text,
    sources jsonb not null,     -- passages as the model saw them, with scores
    placement text not null,
    sampling jsonb not null,
    stop jsonb not null,
    max_tokens bigint,
    prompt_tokens bigint,
    completion_tokens bigint,
    cached_tokens bigint,
    queued_s double precision,
    prefill_s double precision,
    decode_s double precision,
    first_token_s double precision,
    latency_s double precision not null,
    finish_reason text,
    status text not null check (status in ('complete', 'truncated', 'cancelled', 'failed')),
    error text,
    client text,
    extras jsonb not null,
    created_at timestamptz not null,
    unique (tenant, request_id)         -- a turn that is replayed is not doubled
);
create index turns_by_chain on turns (tenant, chain);
create index turns_of_conversation on turns (conversation_id, number);
create index turns_of_parent on turns (parent_id);

-- System prompts are long and the same for thousands of turns.
create table texts (
    sha256 bytea primary key,
    text text not null
);

create table system_prompts (
    turn_id uuid not null references turns on delete cascade,
    position int not null,              -- among all messages of the request
    name text,
    sha256 bytea not null references texts,
    primary key (turn_id, position)
);
create index system_prompts_by_text on system_prompts (sha256);
