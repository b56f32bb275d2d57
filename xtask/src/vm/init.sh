#!/bin/sh
# The first process of the machine: the files of the host, read-only, under a layer in memory; in there, the job, whose
# name is a word on the kernel's command line.
export PATH=/bin
mkdir -p /proc /sys /dev /host /layer /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
modprobe -a @MODULES@
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host
mount -t tmpfs layer /layer
mkdir -p /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root
for directory in proc sys dev; do mount -o move /$directory /root/$directory; done
mount -t tmpfs run /root/run
mkdir -p /root/run/netns /root/run/lock /root/dev/pts /root/dev/shm
mount -t devpts pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t bpf bpf /root/sys/fs/bpf
mount -t cgroup2 cgroup /root/sys/fs/cgroup
# Through the layer, so that a merged /usr is one here too.
mkdir -p /root/usr/lib/modules
mount -t tmpfs modules /root/usr/lib/modules
mkdir -p "/root/usr/lib/modules/$(chroot /root uname -r)"
mount -o bind "/root@KERNEL@/lib/modules/$(chroot /root uname -r)" "/root/usr/lib/modules/$(chroot /root uname -r)"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
# By this very process: where it has its root, the kernel looks for modprobe.
exec chroot /root sh -c '
    ln -sf /proc/self/fd /dev/fd
    ip link set lo up
    stty -F /dev/ttyS1 raw -echo
    ulimit -n 20000
    modprobe -a tun 2>/dev/null
    read -r up _ </proc/uptime
    echo "machine: booted in $up s" >/dev/ttyS0
    sh "$job" </dev/null >/dev/ttyS1 2>&1
    echo "machine: the job ended with $?" >/dev/ttyS0
    # It comes back when all that was written has been sent (TCSADRAIN): what has not is lost with the machine.
    for line in ttyS0 ttyS1; do stty -F /dev/$line -echo; done
    echo o >/proc/sysrq-trigger
    # It is off a moment later.
    while :; do :; done
'
