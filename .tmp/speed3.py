import time, tempfile, psycopg, sys, re
from pathlib import Path
from pgcoord import schema
from pgcoord.embedded import EmbeddedPostgres
e = EmbeddedPostgres(Path(tempfile.mkdtemp(dir="/tmp")) ); e.start()
src = Path('sql/functions/dependency.sql').read_text()
body = re.search(r"function pgcoord.settle_blocked.*?begin\n(.*?)end \$\$;", src, re.S).group(1)
try:
      with psycopg.connect(e.dsn, autocommit=True) as c:
        schema.upgrade(c)
        c.execute(f"insert into planned_features(id,title) select f,'f' from generate_series(1,300) f")
        c.execute("alter table phase_queue disable trigger phase_queue_insert_settles")
        N=100
        c.execute("begin")
        c.execute(f"""insert into phase_queue(queue_id,feature_id,phase_number,status,depends_on_phases) select format('q-%s-%s',f,n) q, f, n,
              case when n=1 then 'failed' else 'queued' end,
              case when n=1 then '[]'::jsonb else jsonb_build_array(n-1) end d from generate_series(1,100) f, generate_series(1,{N}) n order by f,n""")
        c.execute("insert into pgcoord.dependency select feature_id, phase_number-1, phase_number from phase_queue where phase_number>1")
        q = body.replace('p_features','$1').replace('p_phases','$2')
        c.execute("alter table phase_queue disable trigger user; set enable_seqscan=off; set jit=off")
        c.execute("prepare x(integer[],integer[]) as "+q.strip().rstrip(';'))
        arr = c.execute("select array_agg(feature_id)::text, array_agg(phase_number)::text from phase_queue where phase_number=2").fetchone()
        for r in c.execute(f"explain (analyze, buffers off) execute x('{arr[0]}','{arr[1]}')"): print(r[0])
finally:
    e.stop()
