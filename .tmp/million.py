import sys; sys.path.insert(0,'.tmp')
from prof import split
import re
import tempfile, psycopg, time, sys
from pathlib import Path
from pgcoord.embedded import EmbeddedPostgres
from pgcoord import v1, schema
N=int(sys.argv[1])
e = EmbeddedPostgres(Path(tempfile.mkdtemp(dir="/tmp")) ); e.start()
try:
    with psycopg.connect(e.dsn, autocommit=True) as c:
        c.execute("alter system set fsync=off"); c.execute("select pg_reload_conf()")
        c.execute(Path('tests/v1/chain.sql').read_bytes())
        c.execute(f"""insert into phase_queue (queue_id, parent_issue, phase_number, status, depends_on_phase, phase_data, queue_position, adw_id, created_at, updated_at)
          select md5(f || '-' || n), case when f % 10 = 0 then 0 else f end, n,
            case when f % 20 > 0 then 'completed' when n = 2 then 'failed' when n > 2 then 'blocked' else 'queued' end,
            nullif(n - 1, 0), format('{{"title": "Phase %s of %s", "content": "%s", "externalDocs": []}}', n, f, repeat('do ', 60)), f * 10 + n, 'adw-' || md5(n || 'x' || f),
            timestamp '2025-01-01' + f * interval '1 min', timestamp '2025-02-01' + f * interval '1 min'
          from generate_series(1, {N}/5) f, generate_series(1, 5) n order by f, n""")
        c.execute("analyze")
        orig = schema.run_file
        def timed(conn, path):
            t=time.time()
            if path.parent.name=='v1' and path.stem in ('read','features','decide','write'):
                for st in split(path.read_text()):
                    u=time.time(); conn.execute(st.encode()); 
                    if time.time()-u>0.4: print('    ', round(time.time()-u,2), ' '.join(re.sub(r'--[^\n]*\n','',st).split())[:90], flush=True)
            else: orig(conn, path)
            if path.parent.name=='v1': print(path.stem, round(time.time()-t,2), flush=True)
        schema.run_file = timed
        t=time.time()
        c.execute("set track_functions='all'")
        r = v1.migrate(c, actor='me')
        print('all', time.time()-t, r.lines, len(r.decisions))
        time.sleep(1)
        for r in c.execute("select funcname, calls, total_time, self_time from pg_stat_user_functions order by self_time desc limit 8"): print('   ', r)
finally:
    e.stop()
