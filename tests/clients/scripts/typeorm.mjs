import 'reflect-metadata'
import typeorm from 'typeorm'

const feature = Number(process.env.FEATURE)
const data = JSON.parse(process.env.DATA)
const Feature = new typeorm.EntitySchema({
  name: 'planned_features', columns: { id: { type: Number, primary: true }, title: { type: String } },
})
const Phase = new typeorm.EntitySchema({
  name: 'phase_queue',
  columns: {
    queue_id: { type: String, primary: true }, feature_id: { type: Number }, phase_number: { type: Number },
    depends_on_phases: { type: 'jsonb' }, phase_data: { type: 'jsonb' }, status: { type: String },
    adw_id: { type: String, nullable: true }, slot: { type: Number, nullable: true },
  },
})
const db = await new typeorm.DataSource({ type: 'postgres', url: process.env.DATABASE_URL, entities: [Feature, Phase] }).initialize()
const phases = db.getRepository(Phase)
await db.getRepository(Feature).insert({ id: feature, title: 'typeorm' })
await phases.insert({ feature_id: feature, phase_number: 1, status: 'running', adw_id: 'by-hand' })
await phases.insert({ feature_id: feature, phase_number: 2, depends_on_phases: [1], phase_data: data })
const row = await phases.findOneBy({ feature_id: feature, phase_number: 2 })
console.log('read', JSON.stringify([row.depends_on_phases, row.phase_data]))
await db.query('select * from pgcoord.complete_phase($1, $2)', [`queue-${feature}-1`, 'by-hand'])
await db.destroy()
