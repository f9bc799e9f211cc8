import time, tempfile, psycopg, sys
from pathlib import Path
from pgcoord import schema
from pgcoord.embedded import EmbeddedPostgres
e = EmbeddedPostgres(Path(tempfile.mkdtemp(dir="/tmp")) ); e.start()
try:
    for name, st in [('queued',"'queued'"),('completed',"'completed'"),('mixed, done first half', "case when n<=50 then 'completed' else 'queued' end"),('failed first',"case when n=1 then 'failed' else 'queued' end")]:
      with psycopg.connect(e.dsn, autocommit=True) as c:
        c.execute("drop schema if exists pgcoord cascade"); c.execute("drop table if exists phase_queue, planned_features")
        schema.upgrade(c)
        c.execute("set track_functions='all'"); c.execute("select pg_stat_reset()")
        N=100
        with c.transaction():
            c.execute(f"insert into planned_features(id,title) select f,'f' from generate_series(1,300) f")
            t=time.time()
            c.execute(f"""insert into phase_queue(queue_id,feature_id,phase_number,status,depends_on_phases,phase_data) select format('q-%s-%s',f,n) q, f, n,
              {st} st,
              case when n=1 then '[]'::jsonb else jsonb_build_array(n-1) end d, '{{"title":"x","prompt_content":"yyyyyyyyyyyyyyy"}}'::jsonb p
              from generate_series(1,100) f, generate_series(1,{N}) n order by f,n""")
            print(name, '10k', time.time()-t, flush=True)
        c.execute("select pg_stat_force_next_flush()")
        time.sleep(0.3)
        for r in c.execute("select funcname, calls, total_time, self_time from pg_stat_user_functions order by self_time desc limit 6"): print('   ', r)
finally:
    e.stop()
