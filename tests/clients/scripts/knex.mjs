import knexOf from 'knex'

const feature = Number(process.env.FEATURE)
const data = JSON.parse(process.env.DATA)
const knex = knexOf({ client: 'pg', connection: process.env.DATABASE_URL })
await knex('planned_features').insert({ id: feature, title: 'knex' })
await knex('phase_queue').insert({ feature_id: feature, phase_number: 1, status: 'running', adw_id: 'by-hand' })
await knex('phase_queue').insert({ feature_id: feature, phase_number: 2, depends_on_phases: JSON.stringify([1]), phase_data: data })
const row = await knex('phase_queue').where({ feature_id: feature, phase_number: 2 }).first()
console.log('read', JSON.stringify([row.depends_on_phases, row.phase_data]))
await knex.raw('select * from pgcoord.complete_phase(?, ?)', [`queue-${feature}-1`, 'by-hand'])
await knex.destroy()
