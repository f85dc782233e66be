// What runs in dom0 before any program of a test does.

/** Finds the disk on a port of the SATA controller; names are given out in the order the disks answer. */
const DISK = `disk() {
  for block in /sys/block/sd*; do
    case "$(readlink -f "$block")" in */ata$1/*) echo "/dev/\${block##*/}" ;; esac
  done
}
`

/** The first program of dom0's initramfs. */
export const FIRST = (loads: readonly string[]): string => `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
${loads.map((file) => `insmod ${file} || echo "rig: ${file} did not load"`).join('\n')}
${DISK}
for port in 1 2 3 4 5; do until [ -n "$(disk $port)" ]; do sleep 0.1; done; done
mkdir -p /root
mount -t ext4 "$(disk 1)" /root || echo "rig: the root could not be mounted"
cp -a /rig/. /root/rig/
mount -t ext4 "$(disk 2)" /root/app || echo "rig: the payload could not be mounted"
ln -sf "$(disk 3)" /root/rig/mailbox
ln -sf "$(disk 4)" /root/rig/guest-root
ln -sf "$(disk 5)" /root/rig/guest-app
for name in proc sys dev; do mount --move /$name /root/$name; done
exec switch_root /root /rig/init
`

/** dom0's first process: what an init of Debian would do for Xen, without hardware, users and services. */
export const INIT = `#!/bin/bash
export PATH=/usr/lib/xen-4.17/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm /run/xen /run/rig /var/log/xen/console /run/xenstored /var/lib/xenstored /var/lib/xen /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t xenfs xenfs /proc/xen
hostname dom0
ip link set lo up 2>/dev/null
xenstored --pid-file /run/xenstored.pid || echo "rig: xenstored did not start"
until xenstore-exists / 2>/dev/null; do sleep 0.1; done
xen-init-dom0 || echo "rig: xen-init-dom0 failed"
xenconsoled --log=all --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid || echo "rig: no xenconsoled"
while true; do /rig/agent; done
`

/** Makes a disk of dom0 one of a guest (xl-disk-configuration(5), its `script`): Debian's refuses one that two guests share. */
export const BLOCK = `#!/bin/bash
[ "$1" = add ] || exit 0
disk=$(xenstore-read "$XENBUS_PATH/params")
xenstore-write "$XENBUS_PATH/physical-device" "$(stat -L -c %t:%T "$disk")" "$XENBUS_PATH/hotplug-status" connected
`
