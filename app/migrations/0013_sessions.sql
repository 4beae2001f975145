-- Sessions of /chat, and what operators set while the server runs. Apply before the release that reads them.

create table sessions (                 -- a session is a name for the conversation that it goes on with
    tenant text not null,
    key_id text not null,               -- '': none came with it
    name text not null,
    conversation_id uuid,               -- null: it begins anew. It may be gone
    updated_at timestamptz not null default now(),
    primary key (tenant, key_id, name)
);

create table serving_control (          -- a part of the desired state, under its revision; one row
    one boolean primary key default true check (one),
    model text,                         -- null in all of these: as the settings say
    system_prompt text,
    tools boolean,
    layers jsonb not null default '{}'  -- of models on GPUs, by their names
);
