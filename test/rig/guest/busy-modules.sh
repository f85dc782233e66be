#!/bin/sh
# Loads and unloads modules for ever. The names are the arguments.
mkdir -p /run/busy
rounds=0
while true; do
  for name in "$@"; do
    modprobe "$name" || exit 1
    sleep 0.1
  done
  for name in "$@"; do
    # In use for a moment (udev, a tracer): the next round takes it.
    modprobe -r "$name" 2>/dev/null
    sleep 0.1
  done
  rounds=$((rounds + 1))
  echo $rounds > /run/busy/module.new && mv /run/busy/module.new /run/busy/module
done
