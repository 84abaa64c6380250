#!/bin/sh
# Starts PostgreSQL with the variables that its released image documents: POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB.
set -eu

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
if [ -z "${POSTGRES_PASSWORD-}" ]; then
	echo "POSTGRES_PASSWORD is not set: without a password, clients cannot log in" >&2
	exit 1
fi
programs=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data
install --directory --owner postgres --group postgres --mode 0700 /var/lib/postgresql "$data" /run/postgresql
as_postgres() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }

password=/run/postgresql/password
(umask 077 && printf '%s\n' "$POSTGRES_PASSWORD" >$password && chown postgres $password)
as_postgres "$programs/initdb" --pgdata "$data" --username "$user" --pwfile $password \
	--auth-local trust --auth-host scram-sha-256 --encoding UTF8 --locale C.UTF-8 >/dev/null
rm $password
echo 'host all all all scram-sha-256' >>"$data/pg_hba.conf"
if [ "$database" != postgres ]; then
	printf 'CREATE DATABASE "%s";\n' "$database" |
		as_postgres "$programs/postgres" --single -D "$data" postgres >/dev/null
fi
exec setpriv --reuid postgres --regid postgres --clear-groups "$programs/postgres" -D "$data" -c 'listen_addresses=*'
