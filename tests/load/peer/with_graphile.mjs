// graphile-worker, as a peer (peers.py): `setup`, `work` or `client` on a database.
import { openSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { makeWorkerUtils, run } from "graphile-worker";

const [verb, dsn, fifo] = process.argv.slice(2);
const quiet = { logger: undefined };
const now = () => process.hrtime.bigint();

if (verb === "setup") {
  const utils = await makeWorkerUtils({ connectionString: dsn, ...quiet });
  await utils.migrate();
  await utils.release();
} else if (verb === "work") {
  const marks = openSync(fifo, "w");
  await run({
    connectionString: dsn,
    concurrency: 3,
    noHandleSignals: false,
    taskList: {
      job: async (payload) => {
        writeSync(marks, `${payload.number} ${now()}\n`);
      },
    },
  });
} else {
  const utils = await makeWorkerUtils({ connectionString: dsn });
  console.log("ready");
  for await (const line of createInterface({ input: process.stdin })) {
    const [command, argument] = line.split(" ");
    const begun = now();
    if (command === "one") await utils.addJob("job", { number: argument });
    else
      await utils.addJobs(
        Array.from({ length: Number(argument) }, (_, number) => ({
          identifier: "job",
          payload: { number: String(number) },
        })),
      );
    console.log(`${begun} ${now()}`);
  }
  await utils.release();
}
