-- What people think of answers, and the words of conversations. Apply before the release that writes them.

create table feedback (
    turn_id uuid not null references turns on delete cascade,
    author text not null,                   -- whom the client named; '': nobody
    rating double precision check (rating between -1 and 1),   -- -1 is bad, 1 is good
    comment text,
    correction jsonb,                       -- the answer as it should have been, a message
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    primary key (turn_id, author)
);

-- A client may choose its x-request-id.
create index turns_by_x_request_id on turns (tenant, (extras ->> 'x_request_id'));

-- The words that a turn added, the answer's first. PostgreSQL keeps no tsvector over 1 MB, and a turn that it could not
-- index would be a turn that is not kept: hence the bound, in characters.
create function turn_words(answer jsonb, messages jsonb) returns tsvector
language sql immutable parallel safe
return to_tsvector('simple', left(
    coalesce(answer ->> 'content', '') || E'\n'
        || coalesce((select string_agg(said ->> 'content', E'\n') from jsonb_array_elements(messages) said), ''),
    65536
));
create index turns_by_words on turns using gin (turn_words(answer, messages));
