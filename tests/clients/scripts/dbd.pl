use strict;
use warnings;
use DBI;
use JSON::PP;

my $feature = $ENV{FEATURE};
my $data = decode_json($ENV{DATA});
my $db = DBI->connect("dbi:Pg:host=127.0.0.1;port=$ENV{PGPORT};dbname=$ENV{PGDATABASE}", 'postgres', '', {RaiseError => 1});
$db->do('listen pgcoord_event');
$db->do('insert into planned_features (id, title) values (?, ?)', undef, $feature, 'DBD::Pg');
$db->do('insert into phase_queue (feature_id, phase_number, status, adw_id) values (?, 1, ?, ?)', undef, $feature, 'running', 'by-hand');
$db->do('select * from pgcoord.add_phase(?, ?, ?, ?)', undef, $feature, 2, [1], JSON::PP->new->encode($data));
my ($after, $read) = $db->selectrow_array('select depends_on_phases, phase_data from phase_queue where feature_id = ? and phase_number = 2', undef, $feature);
binmode STDOUT, ':utf8';
print "read [$after, $read]\n";
$db->do('select * from pgcoord.complete_phase(?, ?)', undef, "queue-$feature-1", 'by-hand');
my $heard;
select undef, undef, undef, 0.01 until $heard = $db->pg_notifies;
print "heard $heard->[2]\n";
