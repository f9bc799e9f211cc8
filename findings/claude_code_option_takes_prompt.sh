#!/usr/bin/env bash
# claude-code 2.1.197: an option that takes several words takes the prompt after it, too.
#
# `claude --print --allowedTools Bash "Say hello."` ends with status 1: "Input must be provided
# either through stdin or as a prompt argument when using --print". The prompt was read as the name
# of another tool; nothing says so. Prompt first, or on stdin, works: it gets as far as asking for
# a log-in, which is the end of this script, for it talks to no model.
#
# Seen with @anthropic-ai/claude-code 2.1.197 (npm).
# Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-save --prefix "$folder/npm" @anthropic-ai/claude-code@2.1.197
mkdir "$folder/home" "$folder/work"
cd "$folder/work"

run() {
    status=0
    env -i PATH="$PATH" HOME="$folder/home" \
        "$folder/npm/node_modules/.bin/claude" --print "$@" </dev/null >"$folder/out" 2>&1 || status=$?
    printf 'claude --print'
    printf ' %q' "$@"
    printf ': exit status %s\n  %s\n' "$status" "$(head -n1 "$folder/out")"
}
run --allowedTools Bash "Say hello."
grep -q "Input must be provided" "$folder/out" || exit 1
[ "$status" = 1 ] || exit 1
run "Say hello." --allowedTools Bash
grep -q "Not logged in" "$folder/out"
