# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Servers run with their stock configuration, which expects folders of the image in /run."""

import pytest

from server import image

pytestmark = pytest.mark.long

POSTGRESQL = """
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
$bin/initdb --auth trust --pgdata data >log 2>&1 || cat log
$bin/pg_ctl --pgdata data --log server.log --wait start >log 2>&1 || cat log server.log
ls -A /var/run/postgresql
psql --username sandbox --no-align --tuples-only --command 'select 6 * 7' postgres
psql --host localhost --username sandbox --no-align --tuples-only --command 'create table t (x int); select count(*) from t' postgres
$bin/pg_ctl --pgdata data --wait stop >log
grep -E 'FATAL|shmctl' server.log || true
"""

MARIADB = """
set -e
mariadb-install-db --no-defaults --auth-root-authentication-method=normal --datadir="$HOME/data" >log 2>&1 || cat log
mariadbd --datadir="$HOME/data" --user=sandbox >server.log 2>&1 &
for try in $(seq 100); do [ -S /run/mysqld/mysqld.sock ] && mariadb --user root -e 'select 1' >log 2>&1 && break; sleep 0.2; done
mariadb --user root --batch --skip-column-names -e 'select 6 * 7'
mariadb --user root -e shutdown
wait
"""

APACHE = """
set -e
. /etc/apache2/envvars
export APACHE_RUN_USER=sandbox APACHE_RUN_GROUP=sandbox
apache2 -k start >log 2>&1 || cat log
for try in $(seq 50); do [ -s /var/run/apache2/apache2.pid ] && break; sleep 0.1; done
for name in localhost "$(hostname)"; do curl --silent "http://$name/" | grep -c 'It works!'; done
apache2 -k stop >log 2>&1 || cat log
"""

SCREEN = """
set -e
screen -dmS session sh -c 'echo in screen >result; sleep 100'
for try in $(seq 50); do [ -s result ] && break; sleep 0.1; done
cat result
screen -ls | grep -c session
screen -S session -X quit
"""


async def test_servers_run_with_their_stock_configuration(serve):
    server = serve(IMAGE_SHELL=image("servers"), DEFAULT_MEMORY_MB="768").start()
    async with server.client() as tools:
        for code, expected in [
            (POSTGRESQL, [".s.PGSQL.5432", ".s.PGSQL.5432.lock", "42", "CREATE TABLE", "0"]),
            (MARIADB, ["42"]),
            (APACHE, ["1", "1"]),
            (SCREEN, ["in screen", "1"]),
        ]:
            async with tools.environment("shell") as made:
                arguments = {"environment_id": made["environment_id"], "timeout_seconds": 170}
                ran = await tools.call("execute", code=code, **arguments)
                assert (ran["exit_code"], ran["stdout"].splitlines()) == (0, expected), ran
