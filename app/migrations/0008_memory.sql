-- What of the conversations can be found again. Apply before the release that writes it.
-- Two queues tell what is still to do, so that looking for work costs nothing where there is none.

create table unremembered (
    turn_id uuid primary key references turns on delete cascade,
    asked_at timestamptz not null default clock_timestamp(),    -- anew while it is worked on: then it is done again
    failures int not null default 0,
    try_after timestamptz not null default '-infinity'
);

create table memories (
    turn_id uuid primary key references turns on delete cascade,
    chunks int not null,                -- in the vector store; 0: there is nothing to find in this turn
    remembered_at timestamptz not null default now()
);

-- Turns that are gone, and of which the vector store may still hold something.
create table forgotten (
    turn_id uuid primary key,
    tenant text not null,
    created_at timestamptz not null
);

create function remember() returns trigger language plpgsql as $$
begin
    insert into unremembered (turn_id) values (new.id);
    return null;
end $$;
create trigger turn_is_to_be_remembered after insert on turns for each row execute function remember();

create function remember_anew() returns trigger language plpgsql as $$
begin
    insert into unremembered (turn_id) values (new.turn_id)
    on conflict (turn_id) do update set asked_at = clock_timestamp(), failures = 0, try_after = '-infinity';
    return null;
end $$;
create trigger turn_is_to_be_remembered_anew after insert or update of rating, correction on feedback
for each row execute function remember_anew();

create function forget() returns trigger language plpgsql as $$
begin
    insert into forgotten (turn_id, tenant, created_at) values (old.id, old.tenant, old.created_at)
    on conflict do nothing;
    return null;
end $$;
create trigger turn_is_to_be_forgotten after delete on turns for each row execute function forget();

insert into unremembered (turn_id) select id from turns;
