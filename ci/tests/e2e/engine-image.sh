# Builds a root file system for an engine image in $1, from the embedded engine's programs in $2, dial-stdio in $3, and programs
# of this machine's distribution.
set -eu
root=$1 engine=$2 dial_stdio=$3

with_libraries() {
	{ echo "$1"; ldd "$1" | grep -o '/[^ ]*'; } | xargs cp --parents --dereference --target-directory "$root"
}

for program in sh dnsmasq git ip iptables ip6tables pigz runc; do
	with_libraries "$(command -v "$program")"
done
with_libraries /bin/true
cp --parents --recursive /usr/lib/*/xtables "$root"
cp --parents /etc/passwd /etc/group "$root"
install -D "$engine/engine" "$root/usr/bin/engine"
install -D "$engine/init" "$root/run/lab-engine/bin/init"
install -D "$(command -v runc)" "$root/run/lab-engine/bin/runc"
install -D "$engine/dnsname" "$root/opt/cni/bin/dnsname"
# The engine links /usr/bin/iptables and its siblings to one of these.
install "$(readlink -f "$(command -v iptables)")" "$root/usr/bin/xtables-nft-multi"
ln -s xtables-nft-multi "$root/usr/bin/xtables-legacy-multi"
for plugin in bridge firewall host-local loopback; do
	install "/usr/lib/cni/$plugin" "$root/opt/cni/bin"
done
# Dagger's CLI uses this name.
install "$dial_stdio" "$root/usr/bin/buildctl"
mkdir -p "$root/tmp" "$root/run/lab-engine/content" "$root/var/lib/dagger"
ln -s /run "$root/var/run"
# podman does not create this file for containers without a network.
: >"$root/etc/resolv.conf"
