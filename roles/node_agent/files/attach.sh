#!/bin/sh
# Attaches programs to the root of the node's cgroups, and detaches those of earlier pods. Arguments: the node's folder of
# cgroups, a folder in its BPF file system, a file to make when all is done, and the programs that the node shall have
# (guard, low_latency). NODE and POD are the names of the node and of this pod.
#
# The end of a pod detaches nothing, because the guard must have no gap while a pod is replaced or restarted. A pod
# attaches its own programs first, and then detaches all others. So a pod without programs detaches all, and the role
# runs such pods before it removes itself.
set -eu
cgroups=$1 pins=$2 ready=$3
shift 3
wanted=$* missing=
done=attached failed="not attached:"
[ "$wanted" ] || done=detached failed="not detached:"
trap 'exit 0' TERM INT
rm -f "$ready" # which the container before this one made

say() { echo "$NODE: $*"; }

wait_for_signal() {
  tail -f /dev/null & # a shell that waits for a command in the foreground handles no signal
  wait
}

# The pod stays, so that its log can be read, but it does not become ready.
refuse() {
  say "$failed $*"
  wait_for_signal
}

type_of() { stat -f -c %T "$1" 2> /dev/null || echo none; }

# Prints why the kernel is too old for version $1.$2.
too_old() {
  release=$(uname -r)
  major=${release%%.*} minor=${release#*.}
  minor=${minor%%[!0-9]*}
  [ "$major" -gt "$1" ] || { [ "$major" -eq "$1" ] && [ "$minor" -ge "$2" ]; } ||
    echo "the kernel is $release, and $1.$2 or newer is needed"
}

# Attaches each program of an object file, whose name ends with the type of its attachment: nl_connect4. Prints why it
# could not.
attach() {
  case $1 in
    low_latency) why=$(too_old 6 1) ;; # older ones do not let a program set TCP_NODELAY
    *) why=$(too_old 5 8) ;;           # older ones have no CAP_BPF
  esac
  [ ! "$why" ] || { echo "$why"; return; }
  said=$(
    bpftool prog loadall "${0%/*}/$1.o" "$new/$1" 2>&1 || exit
    for program in "$new/$1"/*; do
      bpftool cgroup attach "$root" "${program##*/nl_}" pinned "$program" multi 2>&1 || exit
    done
  ) || {
    detach "$new/$1"
    echo "bpftool says: $(echo "$said" | tr '\n' ' ' | cut -c 1-500)"
  }
}

# A program that is pinned but not attached is not an error.
detach() {
  for program in "$1"/*; do
    bpftool cgroup detach "$root" "${program##*/nl_}" pinned "$program" > /dev/null 2>&1 || true
  done
  rm -rf "$1"
}

# systemd's hybrid layout has version 2 below version 1.
root=
for folder in "$cgroups" "$cgroups/unified"; do
  [ "$root" ] || [ "$(type_of "$folder")" != cgroup2fs ] || root=$folder
done
[ "$root" ] || refuse "/sys/fs/cgroup has no cgroup v2"
[ "$(type_of "${pins%/*}")" = bpf_fs ] || refuse "/sys/fs/bpf is not a BPF file system"

mkdir -p "$pins"
new=$(mktemp -d "$pins/$POD-XXXXXX") # a pod's containers follow one another, so the name of the pod is not enough
for purpose in guard low_latency; do
  case " $wanted " in
    *" $purpose "*)
      why=$(attach "$purpose")
      # Earlier programs stay where their successors cannot be attached.
      [ ! "$why" ] || { missing="$missing${missing:+; }$purpose: $why"; continue; }
      ;;
  esac
  for left in "$pins"/*/"$purpose"; do
    [ "$left" = "$new/$purpose" ] || [ ! -d "$left" ] || detach "$left"
  done
done
rmdir "$pins"/* "$pins" 2> /dev/null || true # those that are empty

[ ! "$missing" ] || refuse "$missing"
: > "$ready"
say "$done${wanted:+: $wanted}"
wait_for_signal
