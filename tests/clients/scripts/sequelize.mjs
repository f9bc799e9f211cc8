import { DataTypes, Sequelize } from 'sequelize'

const feature = Number(process.env.FEATURE)
const data = JSON.parse(process.env.DATA)
const db = new Sequelize(process.env.DATABASE_URL, { logging: false })
const { TEXT, INTEGER, JSONB } = DataTypes
const plain = { timestamps: false, freezeTableName: true }
const Feature = db.define('planned_features', { id: { type: INTEGER, primaryKey: true }, title: TEXT }, plain)
const Phase = db.define('phase_queue', {
  queue_id: { type: TEXT, primaryKey: true }, feature_id: INTEGER, phase_number: INTEGER, status: TEXT, adw_id: TEXT,
  depends_on_phases: JSONB, phase_data: JSONB,
}, plain)
await Feature.create({ id: feature, title: 'sequelize' })
await Phase.create({ feature_id: feature, phase_number: 1, status: 'running', adw_id: 'by-hand' })
await Phase.create({ feature_id: feature, phase_number: 2, depends_on_phases: [1], phase_data: data })
const row = await Phase.findOne({ where: { feature_id: feature, phase_number: 2 } })
console.log('read', JSON.stringify([row.depends_on_phases, row.phase_data]))
await db.query('select * from pgcoord.complete_phase($1, $2)', { bind: [`queue-${feature}-1`, 'by-hand'] })
await db.close()
