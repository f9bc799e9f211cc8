import sys; sys.path.insert(0,'/work/main/tests')
import collections, pytest, test_model as t
C=collections.Counter()
orig=t.Coordination.replay
def replay(self,e):
    C[(e['kind'],e['from_status'],e['to_status'])]+=1
    return orig(self,e)
t.Coordination.replay=replay
o2=t.Coordination.send
def send(self,f,s,*v):
    r=o2(self,f,s,*v)
    C[('stmt',s[:45],'ok' if r is not None else str(sorted(f)))]+=1
    return r
t.Coordination.send=send
@pytest.mark.timeout(600)
def test_it(conn):
    t.run(conn, t.settings(t.COMMON, derandomize=True, max_examples=200, stateful_step_count=50))
    for k,v in sorted(C.items(), key=str): print(k,v)
