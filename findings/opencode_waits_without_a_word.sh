#!/usr/bin/env bash
# opencode 1.18.33: where a 429 names a time (`retry-after`), `opencode run --format json` waits for all of it, be it an
# hour, and writes nothing meanwhile, neither on stdout nor on stderr.
#
# Without that header it gives up within two minutes, with an event of type "error". Who runs it should end what writes
# nothing for long: from outside, a wait for the model and a program that hangs look alike.
#
# Seen with opencode-ai 1.18.33 (npm), node 20, and a server on loopback in place of the API.
# Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
npm install --silent --no-save --prefix "$folder/npm" opencode-ai@1.18.33
mkdir "$folder/home" "$folder/work"

# Answers every request to /SECONDS/… with 429, and the header if there are any seconds.
python3 -u - >"$folder/port" <<'.' &
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = b'{"type": "error", "error": {"type": "rate_limit_error", "message": "too many"}}'
        self.send_response(429)
        if seconds := int(self.path.split("/")[1]):
            self.send_header("retry-after", str(seconds))
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port)
server.serve_forever()
.
server=$!
until [ -s "$folder/port" ]; do :; done

cd "$folder/work"
git init --quiet
as_it_was=0
for seconds in 0 3600; do
    status=0
    env -i PATH="$PATH" HOME="$folder/home" ANTHROPIC_API_KEY=key \
        ANTHROPIC_BASE_URL="http://127.0.0.1:$(cat "$folder/port")/$seconds" \
        timeout 200 "$folder/npm/node_modules/.bin/opencode" run --format json \
        --model anthropic/claude-sonnet-4-5 "Say hello." </dev/null >"$folder/out" 2>"$folder/err" || status=$?
    echo "retry-after $seconds: exit status $status (124: still running after 200 s)," \
        "$(wc -c <"$folder/out") bytes on stdout, $(wc -c <"$folder/err") on stderr"
    if [ "$seconds" = 0 ]; then
        grep -q '"type":"error"' "$folder/out" || as_it_was=1
    else
        [ "$status" = 124 ] && [ ! -s "$folder/out" ] || as_it_was=1
    fi
done
exit "$as_it_was"
