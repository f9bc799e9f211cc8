import tempfile, psycopg, subprocess, os, sys
from pathlib import Path
from pgcoord.embedded import EmbeddedPostgres, find_binaries
from psycopg.conninfo import make_conninfo
e = EmbeddedPostgres(Path(tempfile.mkdtemp(dir="/tmp")) ); e.start()
try:
    with psycopg.connect(e.dsn, autocommit=True) as c:
        c.execute("create database v1")
    dsn = make_conninfo(e.dsn, dbname='v1')
    with psycopg.connect(dsn, autocommit=True) as c:
        c.execute(Path('tests/v1/chain.sql').read_bytes()); c.execute(Path('tests/v1/work.sql').read_bytes())
    def dump():
        return [l for l in subprocess.run([str(find_binaries().directory/'pg_dump'),'-d',dsn],capture_output=True,text=True,check=True).stdout.splitlines() if not l.startswith(('\\restrict','\\unrestrict'))]
    was = dump()
    def call(*a):
        r = subprocess.run([sys.executable,'-m','pgcoord',*a,'--dsn',dsn],capture_output=True,text=True)
        print('$',*a); print(r.stdout, r.stderr, r.returncode)
    call('upgrade')
    call('migrate-v1','--dry-run')
    assert dump()==was
    call('migrate-v1')
    call('migrate-v1')
    with psycopg.connect(dsn, autocommit=True) as c:
        for r in c.execute("select id, title, github_issue_number, status, total_phases, phases_completed, f.priority, f.plan from pgcoord.feature f join planned_features using(id, title) order by id"): print(r)
        for r in c.execute("select queue_id, feature_id, phase_number, status, depends_on_phases, phase_data, error_message, adw_id, queue_position,priority,started_timestamp from phase_queue order by feature_id, phase_number"): print(r)
    call('migrate-v1','--undo','--dry-run')
    call('migrate-v1','--undo')
    now = dump()
    print(now == was)
    import difflib
    print('\n'.join(list(difflib.unified_diff(was,now,lineterm='',n=1))[:40]))
    call('migrate-v1','--undo')
finally:
    e.stop()
