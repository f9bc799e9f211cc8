#!/usr/bin/env bash
# claude-code 2.1.197, --print: a tool that was refused, so that nothing was done, ends in success.
#
# The model asks for `npm test`, which --permission-mode acceptEdits does not allow and nobody is
# there to allow. The command is not run; the exit status is 0, stderr is empty, and the JSON says
# "is_error": false, "subtype": "success". Only "permission_denials" tells. A script that looks at
# the exit status, or at is_error, takes the run for a good one.
#
# Seen with @anthropic-ai/claude-code 2.1.197 (npm). The model is a server of this script.
# Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

folder=$(mktemp -d)
stop() {
    kill "$server" 2>/dev/null || true
    rm -rf "$folder"
}
server=
trap stop EXIT
npm install --silent --no-save --prefix "$folder/npm" @anthropic-ai/claude-code@2.1.197
mkdir "$folder/home" "$folder/work"
cd "$folder/work"
cat >package.json <<'JSON'
{"name": "work", "scripts": {"test": "touch tested"}}
JSON

cat >"$folder/server.js" <<'JS'
// Asks once for `npm test`, then says that all is well.
const http = require("http");
const events = (block, delta, stop) => [
    {type: "message_start", message: {id: "msg_1", type: "message", role: "assistant", model: "m",
        content: [], stop_reason: null, stop_sequence: null, usage: {input_tokens: 10, output_tokens: 1}}},
    {type: "content_block_start", index: 0, content_block: block},
    {type: "content_block_delta", index: 0, delta},
    {type: "content_block_stop", index: 0},
    {type: "message_delta", delta: {stop_reason: stop, stop_sequence: null}, usage: {output_tokens: 5}},
    {type: "message_stop"},
];
const server = http.createServer((request, response) => {
    let text = "";
    request.on("data", (part) => (text += part));
    request.on("end", () => {
        const asked = text ? JSON.parse(text) : {};
        if (!request.url.includes("/messages") || !asked.stream) {
            response.writeHead(200, {"content-type": "application/json"});
            response.end(JSON.stringify({input_tokens: 10}));
            return;
        }
        const calls = asked.tools && asked.tools.length && !text.includes('"tool_result"');
        const answer = calls
            ? events({type: "tool_use", id: "toolu_1", name: "Bash", input: {}},
                {type: "input_json_delta", partial_json: JSON.stringify({command: "npm test", description: "test"})},
                "tool_use")
            : events({type: "text", text: ""}, {type: "text_delta", text: "All is well."}, "end_turn");
        response.writeHead(200, {"content-type": "text/event-stream"});
        for (const event of answer) response.write(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
        response.end();
    });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
JS
node "$folder/server.js" >"$folder/port" &
server=$!
until [ -s "$folder/port" ]; do sleep 0.1; done

status=0
env -i PATH="$PATH" HOME="$folder/home" ANTHROPIC_API_KEY=x \
    ANTHROPIC_BASE_URL="http://127.0.0.1:$(cat "$folder/port")" \
    "$folder/npm/node_modules/.bin/claude" --print --output-format json --permission-mode acceptEdits \
    "Run the tests." </dev/null >"$folder/out" 2>"$folder/err" || status=$?
echo "exit status $status, stderr: $(wc -c <"$folder/err") bytes, tests were run: $(test -e tested && echo yes || echo no)"
node -e '
    const event = JSON.parse(require("fs").readFileSync(0));
    const {is_error, subtype, result, permission_denials} = event;
    console.log(JSON.stringify({is_error, subtype, result, permission_denials}, null, 1));
    process.exit(is_error === false && subtype === "success" && permission_denials.length ? 0 : 1);
' <"$folder/out" || exit 1
if [ "$status" != 0 ] || [ -s "$folder/err" ] || [ -e tested ]; then exit 1; fi
