#!/bin/sh
# Runs the command of a phase in a git worktree of its own, and commits what it has done there.
#
#   in_worktree.sh TITLE COMMAND [ARGUMENT]…
#
# Started in a repository, with the variables that pgcoord gives to a phase. The command gets the
# prompt as its standard input. The branch is pgcoord/<queue_id>; another attempt goes on in it,
# where the last one has stopped. After a success the folder goes and the branch stays; after a
# failure both stay, to be looked at. Bringing the branches together is left to you, or to a phase.
set -eu

title=$1
shift
repository=$(git rev-parse --show-toplevel)
folder=$repository.worktrees/$PGCOORD_QUEUE_ID
branch=pgcoord/$PGCOORD_QUEUE_ID

if [ ! -d "$folder" ]; then
    git show-ref --verify --quiet "refs/heads/$branch" || git branch --quiet "$branch"
    git worktree add --quiet "$folder" "$branch"
fi
cd "$folder"
"$@" <"$PGCOORD_PROMPT_FILE"
git add --all
git diff --cached --quiet || git commit --quiet --message "$title"
cd "$repository"
git worktree remove "$folder"
