#!/bin/sh
# Starts the embedded engine in two stages. The outer stage records its process and enters new mount and PID namespaces. The
# inner stage sets up the file system that the engine expects and becomes its init process. Mounts are visible only in these
# namespaces and vanish with the engine, as do all processes.
# `ci` sets: ENGINE_BIN (directory of the built programs), ENGINE_RUN (directory of this file, the socket and the
# settings), ENGINE_STATE (the engine's state), ENGINE_NETWORK, ENGINE_CIDR, RUNC, CNI_BIN, DNSMASQ, IPTABLES.
set -eu

if [ "${1-}" != inside ]; then
	# The process records itself, because `ci` may be killed first. A PID may be reused later, but the line of stat
	# contains the start time.
	cat /proc/$$/stat >"$ENGINE_RUN/process.new"
	cat /proc/sys/kernel/random/boot_id >>"$ENGINE_RUN/process.new"
	mv "$ENGINE_RUN/process.new" "$ENGINE_RUN/process"
	# Standard input is the engine's lock, which is held until the process is recorded.
	exec </dev/null
	exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc sh "$0" inside
fi

resolv_conf=$(readlink -f /etc/resolv.conf)

# The engine keeps sockets, pid files and network settings in /run, and address reservations in /var/lib/cni.
mount -t tmpfs -o mode=0755 lab-engine /run
mkdir -p /var/lib/cni
mount -t tmpfs -o mode=0700 lab-engine /var/lib/cni

home=/run/lab-engine
mkdir -p $home/bin $home/cni $home/content $home/etc $home/work $home/usr-bin $home/usr-bin-work /run/lock

# The engine creates sockets in its temporary directory, whose path must be shorter than that of the state: Linux allows 107 bytes.
if [ -n "${TMPDIR-}" ]; then
	mkdir $home/tmp
	mount --bind "$TMPDIR" $home/tmp
	export TMPDIR=$home/tmp
fi

# Hides the certificates: the engine would copy them into every container, which costs a second for each step.
if [ -d /usr/local/share/ca-certificates ]; then
	mount -t tmpfs lab-engine /usr/local/share/ca-certificates
fi

# The engine reads its settings from /etc and writes to it; the host's /etc must stay unchanged.
mount -t overlay -o lowerdir=/etc,upperdir=$home/etc,workdir=$home/work lab-engine /etc
mkdir -p /etc/dagger
cp "$ENGINE_RUN/engine.json" /etc/dagger/engine.json
# Puts containers into control groups of this engine, so that `ci` can identify and remove them.
printf '[worker.oci]\ndefaultCgroupParent = "/%s"\n' "$ENGINE_NETWORK" >/etc/dagger/engine.toml

# At startup, the engine replaces /usr/bin/iptables and its siblings by links to one of these two programs, which other
# distributions do not have there. Both lead to the host's iptables, so that the engine and `ci` use the same firewall tables.
iptables=$(readlink -f "$IPTABLES")
for name in xtables-legacy-multi xtables-nft-multi; do
	[ "$iptables" = "/usr/bin/$name" ] || ln -s "$iptables" "$home/usr-bin/$name"
done
mount -t overlay -o lowerdir=/usr/bin,upperdir=$home/usr-bin,workdir=$home/usr-bin-work lab-engine /usr/bin

ln -s "$RUNC" $home/bin/runc
ln -s "$ENGINE_BIN/dnsname" $home/cni/dnsname
for plugin in bridge firewall host-local loopback; do
	ln -s "$CNI_BIN/$plugin" "$home/cni/$plugin"
done
# By default dnsmasq binds port 53 of every address of the host, and fails if one of them is in use.
printf '#!/bin/sh\nexec "%s" "$@" --bind-dynamic\n' "$DNSMASQ" >$home/bin/dnsmasq
chmod +x $home/bin/dnsmasq
PATH=$home/bin:$PATH
# Must be a regular file, because the engine bind-mounts this path into containers.
cp "$ENGINE_BIN/init" $home/bin/init

# The engine reads the host's name servers only once. `ci engine up` rewrites this file, and dnsmasq rereads it.
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
	--oci-cni-pool-size 0 \
	--oci-worker-binary $home/bin/runc
