#!/bin/sh
# A kprobe and a return probe that stay, and the function tracer: mostly on some functions, for a while on all of them.
mkdir -p /run/busy
cd /sys/kernel/tracing || exit 1
echo 'p:busy_open do_sys_openat2' > kprobe_events
echo 'r:busy_exec do_execveat_common.isra.0' >> kprobe_events 2>/dev/null || echo 'r:busy_exec kernel_clone' >> kprobe_events
echo 1 > events/kprobes/enable
rounds=0
while true; do
  echo 'vfs_*' > set_ftrace_filter
  echo function > current_tracer
  rounds=$((rounds + 1))
  echo $rounds > /run/busy/trace.new && mv /run/busy/trace.new /run/busy/trace
  sleep 4
  echo '*_sys_*' >> set_ftrace_filter
  sleep 2
  # All 50,000 functions: switching them is seconds of work for an emulated CPU, so not in every round.
  if [ $((rounds % 10)) -eq 9 ]; then
    echo > set_ftrace_filter
    sleep 1
  fi
  echo nop > current_tracer
  sleep 1
done
