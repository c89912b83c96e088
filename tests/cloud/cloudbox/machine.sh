#!/usr/bin/env bash
# Process 1 of a pretend instance, inside `unshare --net --pid --mount --fork --kill-child --mount-proc`:
#   machine.sh IMAGE PRIVATE_IP PUBLIC_KEY ENDPOINT
# A network card that whoever started this plugs in, a disk of its own (a RAM overlay of the image's /home, an empty
# /tmp, /run and /dev/shm), the account `ubuntu`, sshd.
# Nothing outside this mount namespace changes, and all of it goes when the namespace does.
set -euo pipefail
image=$1 ip=$2 key=$3 endpoint=$4

for ((tries = 0; tries < 200; tries++)); do
  [ -e /proc/self/net/dev ] && grep -q eth0 /proc/self/net/dev && break
  sleep 0.05
done
ip link set lo up
ip address add "$ip/8" dev eth0
ip link set eth0 up
ip route add 169.254.169.254 dev eth0 # the metadata service, as on AWS
ip route add 8.8.8.8 dev eth0 # nothing is there; Ray takes the address by which it would be reached for its own

mount --make-rprivate /
disk=/mnt
mount -t tmpfs tmpfs "$disk"
mkdir "$disk/home" "$disk/work" "$disk/keys"
printf '%s\n' "$key" >"$disk/keys/ubuntu"
install -d -o 1000 -g 1000 "$disk/home/ubuntu" "$disk/home/ubuntu/.aws"
printf '[default]\nregion = us-east-1\nendpoint_url = %s\n' "$endpoint" >"$disk/home/ubuntu/.aws/config" # where this "AWS" is
mount -t overlay overlay -o "lowerdir=$image/home,upperdir=$disk/home,workdir=$disk/work" /home
for file in passwd shadow group hosts sudoers; do mount --bind "$image/etc/$file" "/etc/$file"; done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd
cp "$image/etc/host_key" /run/host_key
chmod 600 /run/host_key
settings="$(cat "$image/etc/session_environment")"
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp /dev/shm

# shellcheck disable=SC2086 # one SetEnv, many words
exec /usr/sbin/sshd -D -e -f /dev/null -p 22 -h /run/host_key -o ListenAddress="$ip" -o UsePAM=no \
  -o AuthorizedKeysFile="$disk/keys/%u" -o StrictModes=no -o PidFile=none -o MaxStartups=200 \
  -o PasswordAuthentication=no -o Subsystem="sftp internal-sftp" -o SetEnv="$settings"
