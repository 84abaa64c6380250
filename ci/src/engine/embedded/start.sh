#!/bin/sh
# Starts the embedded engine, in two stages: outside it notes which process it is and steps into new mount and PID
# namespaces; inside it makes the surroundings that the engine expects and becomes its init. Whatever is mounted here
# is seen by nobody else and is gone when the engine is; whatever runs in here ends with it.
# Set by `ci`: ENGINE_BIN (folder of the built programs), ENGINE_RUN (folder of this file, the socket and the
# settings), ENGINE_STATE (the engine's state), ENGINE_NETWORK, ENGINE_CIDR, RUNC, CNI_BIN, DNSMASQ.
set -eu

if [ "${1-}" != inside ]; then
	# `ci` may be killed before it has noted whom it started, so the process does it itself. A number alone may belong
	# to another process later: the line of stat holds the start time.
	cat /proc/$$/stat >"$ENGINE_RUN/process.new"
	cat /proc/sys/kernel/random/boot_id >>"$ENGINE_RUN/process.new"
	mv "$ENGINE_RUN/process.new" "$ENGINE_RUN/process"
	# Standard input is the lock of this engine: until here nobody else may look for one.
	exec </dev/null
	exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc sh "$0" inside
fi

resolv_conf=$(readlink -f /etc/resolv.conf)

# The engine keeps sockets, pid files and network settings in /run, and address reservations in /var/lib/cni.
mount -t tmpfs -o mode=0755 lab-engine /run
mkdir -p /var/lib/cni
mount -t tmpfs -o mode=0700 lab-engine /var/lib/cni

home=/run/lab-engine
mkdir -p $home/bin $home/cni $home/content $home/etc $home/work /run/lock

# With certificates in this folder the engine puts them into every container, which costs a second for each step.
if [ -d /usr/local/share/ca-certificates ]; then
	mount -t tmpfs lab-engine /usr/local/share/ca-certificates
fi

# The engine writes into /etc and reads its settings there; neither concerns the host.
mount -t overlay -o lowerdir=/etc,upperdir=$home/etc,workdir=$home/work lab-engine /etc
mkdir -p /etc/dagger
cp "$ENGINE_RUN/engine.json" /etc/dagger/engine.json
# Containers in control groups of this engine's own, so that what is left of them can be told from others'.
printf '[worker.oci]\ndefaultCgroupParent = "/%s"\n' "$ENGINE_NETWORK" >/etc/dagger/engine.toml

ln -s "$RUNC" $home/bin/runc
ln -s "$ENGINE_BIN/dnsname" $home/cni/dnsname
for plugin in bridge firewall host-local loopback; do
	ln -s "$CNI_BIN/$plugin" "$home/cni/$plugin"
done
# Left alone, dnsmasq takes port 53 of every address of this host, and fails where anybody has one of them.
printf '#!/bin/sh\nexec "%s" "$@" --bind-dynamic\n' "$DNSMASQ" >$home/bin/dnsmasq
chmod +x $home/bin/dnsmasq
PATH=$home/bin:$PATH
# Containers see it by a bind mount of this very path, so that it has to be a file and not a link.
cp "$ENGINE_BIN/init" $home/bin/init

# The engine takes the host's name servers once. This file is written anew by each `ci engine up`, and dnsmasq follows.
mkdir -p "$(dirname "$resolv_conf")"
[ -e "$resolv_conf" ] || : >"$resolv_conf"
mount --bind "$ENGINE_RUN/resolv.conf" "$resolv_conf"

exec tini -- "$ENGINE_BIN/engine" \
	--config /etc/dagger/engine.toml \
	--root "$ENGINE_STATE" \
	--addr "unix://$ENGINE_RUN/engine.sock" \
	--network-name "$ENGINE_NETWORK" \
	--network-cidr "$ENGINE_CIDR" \
	--oci-cni-binary-dir $home/cni \
	--oci-worker-binary $home/bin/runc
