// pg-boss, as a peer (peers.py): `setup`, `work` or `client` on a database.
import { openSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { PgBoss } from "pg-boss";

const [verb, dsn, fifo] = process.argv.slice(2);
const now = () => process.hrtime.bigint();
const boss = new PgBoss({ connectionString: dsn, useListenNotify: true });
boss.on("error", (error) => console.error(error));
await boss.start();

if (verb === "setup") {
  await boss.createQueue("job", { notify: true });
  await boss.stop();
} else if (verb === "work") {
  const marks = openSync(fifo, "w");
  // One worker of three jobs at a time, fetched without a wait while there are more.
  const options = { batchSize: 3, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
  await boss.work("job", options, async (jobs) => {
    for (const job of jobs) writeSync(marks, `${job.data.number} ${now()}\n`);
  });
} else {
  console.log("ready");
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, argument] = line.split(" ");
    const begun = now();
    if (command === "one") await boss.send("job", { number: argument });
    else
      await boss.insert(
        "job",
        Array.from({ length: Number(argument) }, (_, number) => ({ data: { number: String(number) } })),
      );
    console.log(`${begun} ${now()}`);
  }
  await boss.stop();
}
