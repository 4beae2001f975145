#!/usr/bin/env bash
# The head, once and again: a PostgreSQL that all nodes reach, as the embedded one has no port. Skipped where
# secrets.sh names another one.
set -euo pipefail
# shellcheck source=/dev/null
. ~/.config/mindfu/secrets.sh
[ -z "${MINDFU_POSTGRES_URL:-}" ] || exit 0

sudo DEBIAN_FRONTEND=noninteractive apt-get install -yq postgresql > /dev/null
sudo -u postgres psql -qXv ON_ERROR_STOP=1 -v password="$MINDFU_POSTGRES_PASSWORD" <<'SQL'
select 'create role mindfu login' where not exists (select from pg_roles where rolname = 'mindfu') \gexec
alter role mindfu password :'password';
select 'create database mindfu owner mindfu' where not exists (select from pg_database where datname = 'mindfu') \gexec
alter system set listen_addresses = '*';
alter system set max_connections = 200;
SQL
file=$(sudo -u postgres psql -AtXc 'show hba_file')
rule='host mindfu mindfu samenet scram-sha-256'   # the nodes' own network, with the password
sudo grep -qxF "$rule" "$file" || echo "$rule" | sudo tee -a "$file" > /dev/null
sudo systemctl restart postgresql
