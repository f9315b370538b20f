#!/bin/bash
# Process 1 of a real node, in its own namespaces (processes, mounts, network, host name). All that it mounts, links or
# starts vanishes with it. Arguments: the node's folder, its root file system, the name of its cgroup, its binaries.
set -euo pipefail
home=$1 rootfs=$2 cgroup=$3
shift 3

# mount(8) would record each mount in the machine's /run, which is still visible here.
mount() { command mount --no-mtab "$@"; }

# The root is an overlay of Debian's packages, with all changes in the node's folder. Each component has a log file.
root=$home/root
mount -t overlay node -o "lowerdir=$rootfs,upperdir=$home/changes,workdir=$home/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
[ ! -d "$root/sys/fs/bpf" ] || mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
# On cgroup v1 the node has the hybrid layout of systemd, with a v2 hierarchy without controllers. The node's root there
# is its own cgroup, which has all its processes from here on. On cgroup v2 the node sees the machine's root.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
else
  mount -t tmpfs cgroup "$root/sys/fs/cgroup"
  for hierarchy in /sys/fs/cgroup/*; do
    if [ -L "$hierarchy" ]; then # for example cpu, which links to cpu,cpuacct
      cp --no-dereference "$hierarchy" "$root$hierarchy"
    elif [ -d "$hierarchy" ] && [ ! -e "$hierarchy/cgroup.controllers" ]; then
      mkdir "$root$hierarchy"
      mount --bind "$hierarchy" "$root$hierarchy"
    fi
  done
  mkdir -p "$root/run/cgroup2" "$root/sys/fs/cgroup/unified"
  mount -t cgroup2 cgroup2 "$root/run/cgroup2"
  mkdir -p "$root/run/cgroup2/$cgroup"
  echo 0 > "$root/run/cgroup2/$cgroup/cgroup.procs"
  mount --bind "$root/run/cgroup2/$cgroup" "$root/sys/fs/cgroup/unified"
  umount "$root/run/cgroup2"
fi
# Layers of images, and volumes, must not be on an overlay.
for data in var/lib/containerd var/lib/kubelet opt/local-path-provisioner var/log; do
  mkdir -p "$home/data/$data" "$root/$data"
  mount --bind "$home/data/$data" "$root/$data"
done
mkdir -p "$root/usr/local/bin"
for binary in "$@"; do
  touch "$root/usr/local/bin/${binary##*/}"
  mount --bind "$binary" "$root/usr/local/bin/${binary##*/}"
done
# kubelet writes some settings that belong to the whole machine, so it gets copies of them.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_max{keys,bytes}; do
  mkdir -p "$root/run/sysctl/${setting%/*}"
  cat "/proc/sys/$setting" > "$root/run/sysctl/$setting"
  mount --bind "$root/run/sysctl/$setting" "$root/proc/sys/$setting"
done
cd "$root"
mkdir -p .machine
pivot_root . .machine
umount -l /.machine
mount --make-rshared / # containers see mounts that are made after their start
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root
hash -r

# Debian's packages make these links when they are installed.
for command in ip{,6}tables{,-save,-restore}; do ln -sf xtables-nft-multi "/usr/sbin/$command"; done

# The machine provides the network interface. The node's file has the rest of the network's settings.
source /etc/testbed/network
echo "$node_name" > /proc/sys/kernel/hostname
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip address add "$node_address" dev eth0
ip link set eth0 up
ip route add default via "$machine_address"
echo 1 > /proc/sys/net/ipv4/ip_forward

declare -A started
start() { # start NAME COMMAND…: run a command with its own log
  "${@:2}" > "/var/log/$1.log" 2>&1 &
  started[$!]=$1
}

after_containerd() {
  until [ -S /run/containerd/containerd.sock ]; do sleep 0.05; done
  exec "$@"
}

# kube-router only enforces NetworkPolicies here. It exits if the node is not registered yet, and is then started again.
policies() {
  until kube-router --run-firewall --run-router=false --run-service-proxy=false --run-loadbalancer=false \
    --enable-cni=false --hostname-override "$node_name" --kubeconfig /etc/testbed/kubeconfig \
    --service-cluster-ip-range "$services" --iptables-sync-period 30s; do sleep 1; done
}

mkdir -p /var/lib/containerd/registry
start registry crane registry serve --address :5000 --disk /var/lib/containerd/registry
start containerd containerd --config /etc/testbed/containerd.toml
start kubelet after_containerd kubelet --config /etc/testbed/kubelet.yaml --hostname-override "$node_name" \
  --node-ip "${node_address%/*}" --node-labels "$node_labels" --kubeconfig /var/lib/kubelet/kubeconfig \
  --bootstrap-kubeconfig /etc/testbed/kubeconfig
start kube-proxy kube-proxy --config /etc/testbed/kube-proxy.yaml
start kube-router policies

# bash reaps orphans. If one component ends, the whole node ends.
wait -n -p ended "${!started[@]}" && status=0 || status=$?
echo "${started[$ended]} ended with status $status"
