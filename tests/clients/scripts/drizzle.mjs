import { drizzle } from 'drizzle-orm/node-postgres'
import { and, eq, sql } from 'drizzle-orm'
import { integer, jsonb, pgTable, text, timestamp } from 'drizzle-orm/pg-core'

const feature = Number(process.env.FEATURE)
const data = JSON.parse(process.env.DATA)
const features = pgTable('planned_features', {
  id: integer().primaryKey().generatedByDefaultAsIdentity(), title: text().notNull(), tags: jsonb(),
})
const phases = pgTable('phase_queue', {
  queueId: text('queue_id').primaryKey().default(sql`default`), featureId: integer('feature_id'),
  phaseNumber: integer('phase_number'), dependsOnPhases: jsonb('depends_on_phases'), phaseData: jsonb('phase_data'),
  status: text(), adwId: text('adw_id'), slot: integer(), createdAt: timestamp('created_at'),
})
const db = drizzle(process.env.DATABASE_URL)
await db.insert(features).values({ id: feature, title: 'drizzle' })
await db.insert(phases).values({ queueId: null, featureId: feature, phaseNumber: 1, status: 'running', adwId: 'by-hand' })
await db.insert(phases).values({ queueId: null, featureId: feature, phaseNumber: 2, dependsOnPhases: [1], phaseData: data })
const [row] = await db.select().from(phases).where(and(eq(phases.featureId, feature), eq(phases.phaseNumber, 2)))
console.log('read', JSON.stringify([row.dependsOnPhases, row.phaseData]))
await db.execute(sql`select * from pgcoord.complete_phase(${row.queueId.replace(/2$/, '1')}, 'by-hand')`)
await db.$client.end()
