import time, tempfile, psycopg
from pathlib import Path
from pgcoord import schema
from pgcoord.embedded import EmbeddedPostgres
e = EmbeddedPostgres(Path(tempfile.mkdtemp(dir="/tmp")) ); e.start()
try:
    with psycopg.connect(e.dsn, autocommit=True) as c:
        schema.upgrade(c)
        N=100
        with c.transaction():
            t=time.time()
            c.execute(f"insert into planned_features(id,title) select f,'f' from generate_series(1,{200000//N}) f")
            print('features', time.time()-t); t=time.time()
            c.execute(f"""create temp table src as select format('q-%s-%s',f,n) q, f, n,
              case when f%2=0 then 'completed' when n=1 then 'failed' else 'queued' end st,
              case when n=1 then '[]'::jsonb else jsonb_build_array(n-1) end d, '{{"title":"x","prompt_content":"yyyyyyyyyyyyyyy"}}'::jsonb p
              from generate_series(1,{200000//N}) f, generate_series(1,{N}) n""")
            c.execute("analyze src")
            print('src', time.time()-t); 
            for k in range(4):
                t=time.time()
                c.execute(f"insert into phase_queue(queue_id,feature_id,phase_number,status,depends_on_phases,phase_data) select q,f,n,st,d,p from src where f > {k*500} and f <= {(k+1)*500} order by f,n")
                print('50k', time.time()-t)
            t=time.time()
            c.execute("insert into pgcoord.event(kind,feature_id,phase_number,queue_id,actor,reason) select 'phase_migrated',f,n,q,'x','from v1 sdjflksjdflksjfl' from src")
            print('200k events', time.time()-t)
            t=time.time()
    print(c.closed)
    print('commit', time.time()-t)
finally:
    e.stop()
