-- Files and vector stores as OpenAI has them. Apply before the release that writes them.

create table uploads (
    id text collate "C" primary key,    -- begins with the time of creation: the order of ids is that of files
    tenant text not null,
    name text not null,
    media_type text,
    purpose text not null,
    bytes bigint not null,
    created_at timestamptz not null,
    expires_at timestamptz              -- null: never
);
create index uploads_of_tenant on uploads (tenant, id);
create index uploads_by_expiry on uploads (expires_at) where expires_at is not null;

create table upload_bytes (
    upload_id text primary key references uploads on delete cascade,
    data bytea not null
);
alter table upload_bytes alter column data set storage external;    -- most files are compressed already

-- A shelf is what OpenAI calls a vector store.
create table shelves (
    id text collate "C" primary key,
    tenant text not null,
    name text not null,
    description text,
    metadata jsonb not null,
    created_at timestamptz not null,
    active_at timestamptz not null,
    expires_days int,                   -- after it was last active; null: never
    deleted boolean not null default false      -- hidden; its row goes after its documents
);
create index shelves_of_tenant on shelves (tenant, id);

create table shelf_batches (
    id text primary key,
    shelf_id text not null references shelves on delete cascade,
    created_at timestamptz not null,
    cancelled boolean not null default false
);

-- A file on a shelf: a document of the collection that has the shelf's id.
create table shelved (
    shelf_id text not null references shelves on delete cascade,
    upload_id text not null,            -- which may be gone
    batch_id text,
    name text not null,
    attributes jsonb not null,
    chunk_tokens int,                   -- null: as the settings say
    overlap_tokens int,
    status text not null check (status in ('in_progress', 'completed', 'failed', 'cancelled', 'leaving')),
    error_code text,
    error text,
    document_id text collate "C" references documents on delete set null,   -- which two files of one content share
    bytes bigint not null default 0,
    created_at timestamptz not null,
    asked_at timestamptz not null default clock_timestamp(),    -- anew while it is worked on: then it is done again
    primary key (shelf_id, upload_id)
);
create index shelved_to_do on shelved (asked_at) where status in ('in_progress', 'leaving');
create index shelved_in_batch on shelved (batch_id) where batch_id is not null;
create index shelved_of_document on shelved (document_id);
