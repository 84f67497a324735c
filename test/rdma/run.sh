#!/usr/bin/env bash
# RDMA without hardware: boots Debian's kernel in a virtual machine, makes a
# software network card for RDMA there (soft-RoCE), and runs the fabric's suite
# and a save, drain and restore over libfabric's provider verbs.
#
# usage: run.sh GUEST-PROGRAMS-DIR CACHE-DIR
#
# The folder of programs goes to the guest's /bin. The kernel is downloaded by apt
# into the cache, once. The virtual machine reaches nothing outside, and is
# emulated: RDMA_ACCEL=kvm is faster where that works. Exits with 1 when the guest
# failed, or said nothing within RDMA_TIMEOUT seconds (default 600).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
programs=$1 cache=$2
limit=${RDMA_TIMEOUT:-600}

say() { echo "test-rdma: $*"; }
die() { echo >&2 "test-rdma: $*"; exit 1; }

# --- what it needs -----------------------------------------------------------

[ "$(uname -m)" = x86_64 ] || die "the virtual machine is made for x86-64, this is $(uname -m)"
mkdir -p "$cache"
"$here/packages.sh" qemu-system-x86 busybox-static cpio kmod iproute2 ibverbs-providers

# kernel sets $kernel, a folder with boot/vmlinuz and lib/modules, from Debian's package.
kernel() {
	kernel=$(find "$cache" -maxdepth 2 -name .complete -printf '%h\n' -quit)
	[ -z "$kernel" ] || return 0
	local package tmp
	[ -n "$(apt-cache depends linux-image-amd64 2>/dev/null)" ] || apt-get update >"$cache/apt.log" 2>&1 || true
	package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -1)
	[ -n "$package" ] || die "apt knows no linux-image-amd64; run apt-get update as root"
	say "downloading $package, 70 MB"
	tmp=$(mktemp -d "$cache/download.XXXXXX")
	(cd "$tmp" && apt-get download "$package") >"$cache/apt.log" 2>&1 || { tail >&2 -5 "$cache/apt.log"; rm -rf "$tmp"; die "'apt-get download $package' did not work"; }
	dpkg -x "$tmp"/*.deb "$tmp"
	rm "$tmp"/*.deb
	# Debian has /lib in /usr or beside it.
	[ -d "$tmp/lib/modules" ] || { mkdir -p "$tmp/lib" && mv "$tmp/usr/lib/modules" "$tmp/lib/"; }
	mv "$tmp"/boot/vmlinuz-* "$tmp/boot/vmlinuz"
	depmod -b "$tmp" "$(ls "$tmp/lib/modules")"
	kernel="$cache/$package"
	rm -rf "$kernel"
	mv "$tmp" "$kernel"
	touch "$kernel/.complete"
}

# --- the guest's file system -------------------------------------------------

# Software RoCE with all it stands on. crc32_generic is asked for by name.
modules=(crc32_generic virtio_pci virtio_net rdma_rxe rdma_ucm)

# put copies a file to the same place in the guest.
put() { mkdir -p "$root$(dirname "$1")" && cp -L "$1" "$root$1"; }

# with puts the libraries of a program.
with() { ldd "$1" 2>/dev/null | grep -oE '/[^ ]+' | while read -r lib; do [ -e "$root$lib" ] || put "$lib"; done; }

guest() {
	local m
	root=$work/root
	mkdir -p "$root"/{bin,proc,sys,dev,tmp,etc,data,modules}
	cp "$(command -v busybox)" "$root/bin/busybox"
	cp "$here/init" "$root/init"
	cp "$programs"/* "$root/bin/"
	chmod +x "$root/init"
	PATH=$PATH:/usr/sbin:/sbin
	cp "$(command -v rdma)" "$root/bin/rdma"
	for m in "$root"/bin/{ofi.test,ckptd,rdma} "$(echo /usr/lib/*/libibverbs/librxe-*.so)"; do with "$m"; done
	put "$(echo /usr/lib/*/libibverbs/librxe-*.so)"
	put /etc/libibverbs.d/rxe.driver
	printf '127.0.0.1 localhost\n10.0.2.15 guest\n' >"$root/etc/hosts"
	echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
	# In the order in which they are loaded.
	for m in "${modules[@]}"; do
		modprobe -d "$kernel" -S "$(ls "$kernel/lib/modules")" --show-depends "$m" | sed -n 's/^insmod //p'
	done | awk '!seen[$1]++ { print $1 }' | while read -r m; do
		case $m in
		*.xz) xz -dc "$m" >"$root/modules/$(basename "$m" .xz)" ;;
		*) cp "$m" "$root/modules/" ;;
		esac
		basename "$m" .xz >>"$root/modules/order"
	done
	(cd "$root" && find . | cpio -o -H newc --quiet) | gzip -1 >"$work/initrd.gz"
}

# --- run ---------------------------------------------------------------------

kernel
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
guest
say "starting a virtual machine, kernel $(basename "$kernel")"
from=$SECONDS
# The console is a pipe: qemu ends with the guest, or with this script by the limit.
timeout --foreground -k 5 "$limit" qemu-system-x86_64 -machine accel="${RDMA_ACCEL:-tcg}" -cpu "${RDMA_CPU:-max}" -smp 2 -m 2048 -nographic -no-reboot \
	-kernel "$kernel/boot/vmlinuz" -initrd "$work/initrd.gz" -append "console=ttyS0 panic=1 quiet net.ifnames=0 printk.time=0 printk.devkmsg=on" \
	-nic user,model=virtio-net-pci,restrict=on </dev/null 2>&1 | tr -d '\r' | tee "$cache/console.log" | grep --line-buffered '^| ' | cut -c 3- || true
code=$(sed -n 's/^GUEST-EXIT //p' "$cache/console.log" | tail -1)
if [ "$code" != 0 ]; then
	tail >&2 -60 "$cache/console.log"
	[ -n "$code" ] || die "the guest did not say how it went within $limit s; its console is in $cache/console.log"
	die "the guest failed; its console is in $cache/console.log"
fi
say "done, the virtual machine took $((SECONDS - from)) s"
