require 'json'
require 'pg'

feature = Integer(ENV['FEATURE'])
data = JSON.parse(ENV['DATA'])
db = PG.connect(ENV['DATABASE_URL'])
db.exec('listen pgcoord_event')
db.exec_params('insert into planned_features (id, title) values ($1, $2)', [feature, 'ruby-pg'])
db.exec_params('insert into phase_queue (feature_id, phase_number, status, adw_id) values ($1, 1, $2, $3)', [feature, 'running', 'by-hand'])
db.exec_params('select * from pgcoord.add_phase($1, $2, $3, $4)', [feature, 2, '{1}', data.to_json])
row = db.exec_params('select depends_on_phases, phase_data from phase_queue where feature_id = $1 and phase_number = 2', [feature])[0]
puts "read [#{row['depends_on_phases']}, #{row['phase_data']}]"
db.exec_params('select * from pgcoord.complete_phase($1, $2)', ["queue-#{feature}-1", 'by-hand'])
db.wait_for_notify(20) { |_, _, payload| puts "heard #{payload}" }
