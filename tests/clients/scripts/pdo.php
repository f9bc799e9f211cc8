<?php
$feature = (int) getenv('FEATURE');
$data = json_decode(getenv('DATA'));
$db = new PDO('pgsql:host=127.0.0.1;port=' . getenv('PGPORT') . ';dbname=' . getenv('PGDATABASE'), 'postgres');
$db->exec('listen pgcoord_event');
$db->prepare('insert into planned_features (id, title) values (?, ?)')->execute([$feature, 'PDO']);
$db->prepare('insert into phase_queue (feature_id, phase_number, status, adw_id) values (?, 1, ?, ?)')->execute([$feature, 'running', 'by-hand']);
$db->prepare('select * from pgcoord.add_phase(?, ?, ?, ?)')->execute([$feature, 2, '{1}', json_encode($data)]);
$row = $db->query("select depends_on_phases, phase_data from phase_queue where feature_id = $feature and phase_number = 2")->fetch(PDO::FETCH_NUM);
echo "read [$row[0], $row[1]]\n";
$db->prepare('select * from pgcoord.complete_phase(?, ?)')->execute(["queue-$feature-1", 'by-hand']);
echo 'heard ', $db->pgsqlGetNotify(PDO::FETCH_NUM, 20000)[2], "\n";
