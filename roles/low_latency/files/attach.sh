#!/bin/sh
# Attaches the program tcp_nodelay.o to the node's cgroup, and detaches it when it is told to end. Arguments: the node's
# folder of cgroups, and a folder in its BPF file system. NODE and POD are the names of the node and of this pod.
set -eu
cgroups=$1 pins=$2
pin=$pins/$POD

say() { echo "$NODE: $*"; }

wait_for_signal() {
  tail -f /dev/null & # a shell that waits for a command in the foreground handles no signal
  wait
}

# The pod stays, so that its log can be read, but it does not become ready.
refuse() {
  say "not attached: $*"
  wait_for_signal
}

type_of() { stat -f -c %T "$1" 2> /dev/null || echo none; }

# Prints the program that a file in the BPF file system pins. A program that is pinned but not attached is not an error.
detach() {
  [ -e "$1" ] || return 0
  bpftool cgroup detach "$root" sock_ops pinned "$1" > /dev/null 2>&1 || true
  rm -f "$1"
}

# Another pod may have taken over by now. Its program has another name.
finish() {
  detach "$pin"
  rmdir "$pins" 2> /dev/null || true # which fails if that is so
  say "detached"
  exit 0
}
trap 'exit 0' TERM INT

release=$(uname -r)
major=${release%%.*} minor=${release#*.}
minor=${minor%%[!0-9]*}
[ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 1 ]; } ||
  refuse "the kernel is $release, and 6.1 or newer is needed"

# systemd's hybrid layout has version 2 below version 1.
root=
for folder in "$cgroups" "$cgroups/unified"; do
  [ "$root" ] || [ "$(type_of "$folder")" != cgroup2fs ] || root=$folder
done
[ "$root" ] || refuse "/sys/fs/cgroup has no cgroup v2"
[ "$(type_of "${pins%/*}")" = bpf_fs ] || refuse "/sys/fs/bpf is not a BPF file system"

trap finish TERM INT
mkdir -p "$pins"
for left in "$pins"/*; do # by a pod that was killed
  detach "$left"
done

said=$(bpftool prog load "${0%/*}/tcp_nodelay.o" "$pin" 2>&1 &&
  bpftool cgroup attach "$root" sock_ops pinned "$pin" multi 2>&1) || {
  detach "$pin"
  refuse "bpftool says: $(echo "$said" | tr '\n' ' ' | cut -c 1-500)"
}
say "attached"
wait_for_signal
