#!/bin/sh
# Makes a pod's file system in its own mount namespace, and runs a command:
# pod.sh PRIVILEGES ROOT ETC [SOURCE TARGET MODE]… -- COMMAND…
# PRIVILEGES is a command that gives some up, or "". ROOT is an empty folder. The files in ETC replace those of the machine's
# /etc. MODE is ro or rw. Programs are the machine's.
set -eu
privileges=$1 root=$2 etc=$3
shift 3
mount -t tmpfs -o mode=755 tmpfs "$root"
for name in usr bin sbin lib lib32 lib64; do
  if [ -L "/$name" ]; then
    cp -P "/$name" "$root/$name"
  elif [ -d "/$name" ]; then
    mkdir "$root/$name"
    mount -o bind,ro "/$name" "$root/$name"
  fi
done
mkdir "$root/etc" "$root/proc" "$root/dev" "$root/tmp" "$root/var" "$root/var/tmp"
mount --rbind /etc "$root/etc"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
for file in "$etc"/*; do
  mount --bind "$file" "$(realpath "$root/etc/${file##*/}")"
done
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then
    mkdir -p "$root$2"
  else
    mkdir -p "$root${2%/*}"
    touch "$root$2"
  fi
  mount -o "bind,$3" "$1" "$root$2"
  shift 3
done
shift
exec chroot "$root" $privileges "$@"
