import java.sql.*;
import org.postgresql.PGConnection;

public class Jdbc {
    public static void main(String[] arguments) throws Exception {
        long feature = Long.parseLong(System.getenv("FEATURE"));
        String data = System.getenv("DATA");
        String url = "jdbc:postgresql://127.0.0.1:" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        Connection db = DriverManager.getConnection(url, "postgres", "");
        db.createStatement().execute("listen pgcoord_event");
        PreparedStatement s = db.prepareStatement("insert into planned_features (id, title) values (?, 'JDBC')");
        s.setLong(1, feature);
        s.execute();
        s = db.prepareStatement("insert into phase_queue (feature_id, phase_number, status, adw_id) values (?, 1, 'running', 'by-hand')");
        s.setLong(1, feature);
        s.execute();
        s = db.prepareStatement("select * from pgcoord.add_phase(?, 2, ?, ?::jsonb)");
        s.setLong(1, feature); s.setArray(2, db.createArrayOf("bigint", new Long[] {1L})); s.setString(3, data);
        s.execute();
        ResultSet row = db.createStatement().executeQuery("select depends_on_phases, phase_data from phase_queue where feature_id = " + feature + " and phase_number = 2");
        row.next();
        new java.io.PrintStream(System.out, true, "UTF-8").println("read [" + row.getString(1) + ", " + row.getString(2) + "]");
        s = db.prepareStatement("select * from pgcoord.complete_phase(?, 'by-hand')");
        s.setString(1, "queue-" + feature + "-1");
        s.execute();
        System.out.println("heard " + db.unwrap(PGConnection.class).getNotifications(20000)[0].getParameter());
    }
}
