#!/usr/bin/env bash
# Slurm 22.05.8: a controller that is killed while a job runs, and started again, has the node kill that job, and runs it
# once more, under the same id, with `--no-requeue`, and nothing says so: SLURM_RESTART_COUNT is not set, nor Restarts counted.
#
# The controller writes its state every five seconds at most. If the last one that it wrote has the job as PENDING, the node that
# registers with the job running is told to abort it, by SIGKILL, and the job is scheduled as if it had never run. So a job
# should ask somebody who knows whether it may begin, and what it did so far may have been done in part.
#
# Seen with Debian's slurm-wlm 22.05.8 and munge, as root. Exit status 0 while it is so, 1 when it is not so any more.
set -euo pipefail

command -v slurmctld munged >/dev/null || apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
folder=$(mktemp -d /tmp/finding-XXXXXX)
chmod 711 "$folder"
export SLURM_CONF=$folder/slurm.conf
stop() {
    scancel --full --signal=KILL --me 2>/dev/null && until_it_is "" squeue -h -t R || true
    for daemon in controller node munged; do
        kill -KILL "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
    done
    rm -rf "$folder" 2>/dev/null || true
}
trap stop EXIT
until_it_is() { # a text, and the command that prints it
    for _ in $(seq 600); do
        if [[ $("${@:2}" 2>/dev/null || true) == "$1" ]]; then return; fi
        sleep 0.1
    done
    echo "not within a minute: ${*:2} prints $1" >&2
    exit 2
}

mkdir "$folder/state" "$folder/spool"
head -c 1024 /dev/urandom >"$folder/key"
chmod 400 "$folder/key"
munged --force --key-file="$folder/key" --socket="$folder/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/seed"
host=$(hostname -s)
cat >"$SLURM_CONF" <<.
ClusterName=finding
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthInfo=socket=$folder/socket
SlurmctldPort=26817
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/controller.pid
SlurmdPidFile=$folder/node.pid
SlurmctldLogFile=$folder/controller.log
SlurmdLogFile=$folder/node.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26818 CPUs=2
PartitionName=p Nodes=n1 Default=YES
.
slurmctld
slurmd -N n1
until_it_is idle sinfo -h -o %T

cat >"$folder/job.sh" <<'.'
#!/bin/sh
echo "job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-none}"
exec sleep 60
.
sbatch --wait --output=/dev/null --wrap true >/dev/null
# A change is written at once, the next one not before five seconds later: that of the start shall not be.
until_it_is quiet sh -c "[ \$(( \$(date +%s) - \$(stat -c %Y '$folder/state/job_state') )) -ge 7 ] && echo quiet"
job=$(cd "$folder" && sbatch --parsable --no-requeue --output="$folder/output" --open-mode=append "$folder/job.sh")
until_it_is 1 sh -c "wc -l <'$folder/output'"
kill -KILL "$(cat "$folder/controller.pid")"
until_it_is "" pgrep -F "$folder/controller.pid"
slurmctld
until_it_is 2 sh -c "wc -l <'$folder/output'"
sbatch --version
cat "$folder/output"
grep -o "Registered PENDING.*\|abort completed" "$folder/controller.log" "$folder/node.log" | sed 's/^.*log://'
first="job $job, restart none"
[[ $(grep -cx "$first" "$folder/output") == 2 ]]
