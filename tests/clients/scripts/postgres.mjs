import postgres from 'postgres'

const feature = Number(process.env.FEATURE)
const data = JSON.parse(process.env.DATA)
const sql = postgres(process.env.DATABASE_URL)
let hear
const heard = new Promise((done) => (hear = done))
await sql.listen('pgcoord_event', (payload) => hear(payload))
await sql`insert into planned_features (id, title) values (${feature}, 'postgres.js')`
await sql`insert into phase_queue (feature_id, phase_number, status, adw_id) values (${feature}, 1, 'running', 'by-hand')`
await sql`select * from pgcoord.add_phase(${feature}, 2, ${[1]}, ${data})`
const [row] = await sql`select depends_on_phases, phase_data from phase_queue where feature_id = ${feature} and phase_number = 2`
console.log('read', JSON.stringify([row.depends_on_phases, row.phase_data]))
await sql`select * from pgcoord.complete_phase(${`queue-${feature}-1`}, 'by-hand')`
console.log('heard', await heard)
await sql.end()
