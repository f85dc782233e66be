#!/bin/sh
# Loads and unloads modules for ever. The names are the arguments; a count of loads is kept.
mkdir -p /run/busy
count=0
while true; do
  for name in "$@"; do
    modprobe "$name" || exit 1
    count=$((count + 1))
    echo $count > /run/busy/module.new && mv /run/busy/module.new /run/busy/module
    sleep 0.1
  done
  for name in "$@"; do
    # In use for a moment (a tracer): the next round takes it.
    modprobe -r "$name" 2>/dev/null
    sleep 0.1
  done
done
