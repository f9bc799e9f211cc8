#!/usr/bin/env bash
# qwen-code 0.15.10, headless: a model that cannot be reached, or answers 400, ends in success.
#
# The process exits with 0; with --output-format stream-json the last event is
# {"type": "result", "subtype": "success", "is_error": false}, and the error is its answer:
# "[API Error: …]". Text output looks alike. Whoever runs it in a script, as CI or a queue does,
# takes a run in which nothing happened for a good one, unless the text of the answer is looked at.
#
# Seen with @qwen-code/qwen-code 0.15.10 (npm) on node 20. It talks to a server of this script only.
# Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

folder=$(mktemp -d)
stop() {
    kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
server=
trap stop EXIT
npm install --silent --no-save --prefix "$folder/npm" @qwen-code/qwen-code@0.15.10
mkdir "$folder/home" "$folder/work"
cd "$folder/work"

cat >"$folder/server.js" <<'JS'
const http = require("http");
const server = http.createServer((request, response) => {
    response.writeHead(400, {"content-type": "application/json"});
    response.end(JSON.stringify({error: {message: "no such model", type: "invalid_request_error"}}));
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
JS
node "$folder/server.js" >"$folder/port" &
server=$!
until [ -s "$folder/port" ]; do sleep 0.1; done

run() {
    env -i PATH="$PATH" HOME="$folder/home" OPENAI_API_KEY=x OPENAI_MODEL=gpt-5 \
        OPENAI_BASE_URL="http://127.0.0.1:$1/v1" \
        "$folder/npm/node_modules/.bin/qwen" --output-format stream-json "Say hello." </dev/null
}
same=0
for port in "$(cat "$folder/port")" 9; do
    status=0
    run "$port" >"$folder/out" 2>"$folder/err" || status=$?
    tail -n1 "$folder/out" | node -e '
        const event = JSON.parse(require("fs").readFileSync(0));
        console.log(`  is_error: ${event.is_error}, subtype: ${event.subtype}, result: ${event.result}`);
        process.exit(event.is_error === false && event.result.startsWith("[API Error") ? 0 : 1);
    ' && [ "$status" = 0 ] || same=1
    if [ "$port" = 9 ]; then what="nobody listens"; else what="answer 400"; fi
    echo "$what: exit status $status"
done
exit "$same"
