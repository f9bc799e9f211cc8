from conftest import Connection, add_feature, claim, start, statuses, take_lead

def test_x(conn: Connection, epoch: int) -> None:
    f = add_feature(conn, {1: [], 2: [1]})
    assert claim(conn, epoch) == [f"queue-{f}-1"]
