-- Documents that were taken in, or are about to be, or about to go. Apply before the release that writes them.

create table documents (
    id text collate "C" primary key,    -- begins with the time of creation: the order of ids is that of documents
    tenant text not null,
    collection text not null,
    sha256 bytea not null,              -- of the content
    size bigint not null,               -- bytes
    name text,                          -- of the file, as its sender called it
    title text not null,
    media_type text not null,
    metadata jsonb not null,
    chunks int not null,
    state text not null check (state in ('ingesting', 'ready', 'deleting')),
    created_at timestamptz not null,
    unique (tenant, collection, sha256)
);
create index documents_of_tenant on documents (tenant, id);
create index documents_of_collection on documents (tenant, collection, id);
create index documents_unfinished on documents (id) where state <> 'ready';
