require 'json'
require 'logger'
require 'active_record'

feature = Integer(ENV['FEATURE'])
data = JSON.parse(ENV['DATA'])
ActiveRecord::Base.establish_connection(ENV['DATABASE_URL'])
class Feature < ActiveRecord::Base
  self.table_name = 'planned_features'
end
class Phase < ActiveRecord::Base
  self.table_name = 'phase_queue'
end
Feature.create!(id: feature, title: 'ActiveRecord')
Phase.create!(feature_id: feature, phase_number: 1, status: 'running', adw_id: 'by-hand')
Phase.create!(feature_id: feature, phase_number: 2, depends_on_phases: [1], phase_data: data)
row = Phase.find_by(feature_id: feature, phase_number: 2)
puts "read #{[row.depends_on_phases, row.phase_data].to_json}"
ActiveRecord::Base.connection.execute("select * from pgcoord.complete_phase('queue-#{feature}-1', 'by-hand')")
