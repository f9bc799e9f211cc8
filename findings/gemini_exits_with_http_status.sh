#!/usr/bin/env bash
# gemini-cli 0.61.0: with JSON output its exit status is the HTTP status of the answer, modulo 256.
#
# A key that is refused (401) ends it with 145 (with text as output: 1). A shell reads
# that as a signal: 128 + 17 is SIGCHLD. Its own statuses are below 128 (41 without
# a key, 55 in a folder that is not trusted). Who runs it should read its output for the reason.
#
# Seen with @google/gemini-cli 0.61.0 (npm), node 20, and a server on loopback in place of the API.
# Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
npm install --silent --no-save --prefix "$folder/npm" @google/gemini-cli@0.61.0
mkdir -p "$folder/home/.gemini" "$folder/work"
echo '{"security": {"auth": {"selectedType": "gemini-api-key"}}}' >"$folder/home/.gemini/settings.json"

# Answers every request to /STATUS/… with that status.
python3 -u - >"$folder/port" <<'.' &
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        status = int(self.path.split("/")[1])
        body = b'{"error": {"code": %d, "message": "no", "status": "REFUSED"}}' % status
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port)
server.serve_forever()
.
server=$!
until [ -s "$folder/port" ]; do :; done

cd "$folder/work"
as_it_was=0
answer=401
for format in text stream-json; do
    status=0
    env -i PATH="$PATH" HOME="$folder/home" GEMINI_API_KEY=key \
        GOOGLE_GEMINI_BASE_URL="http://127.0.0.1:$(cat "$folder/port")/$answer" \
        "$folder/npm/node_modules/.bin/gemini" --skip-trust --model gemini-2.5-flash --output-format "$format" \
        --prompt "Say hello." </dev/null >"$folder/out" 2>&1 || status=$?
    echo "HTTP $answer, --output-format $format: exit status $status"
    expected=1
    [ "$format" = text ] || expected=$((answer % 256))
    [ "$status" = "$expected" ] || as_it_was=1
done
exit "$as_it_was"
