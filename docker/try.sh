#!/bin/sh
# Run the steps of docker/Dockerfile without Docker, as root: docker/try.sh <empty folder> <checkpoint> <images> <maps>
# A Debian made by debootstrap takes the place of the base image, and the network is cut for the last step.
# Mirror and package index are those of this machine: MIRROR, PIP_INDEX_URL, PIP_CERT (a file) are passed on.
set -eu
[ $# -eq 4 ] || { sed -n '2,4s/^# //p' "$0"; exit 2; }
root=$(realpath "$1") checkpoint=$(realpath "$2") images=$(realpath "$3") maps=$(realpath "$4")
here=$(cd "$(dirname "$0")/.." && pwd)

[ -e "$root/bin/sh" ] || debootstrap --variant=minbase bookworm "$root" ${MIRROR:-http://deb.debian.org/debian}
mount_all() { for part in proc sys dev; do mountpoint -q "$root/$part" || mount --rbind "/$part" "$root/$part"; done; }
umount_all() { for part in model.safetensors input_path output_path proc sys dev; do umount -lq "$root/$part" 2>/dev/null || true; done; }
trap umount_all EXIT
mount_all
cp /etc/resolv.conf "$root/etc/resolv.conf"
[ -z "${PIP_CERT:-}" ] || { cp "$PIP_CERT" "$root/etc/pip-cert.pem"; PIP_CERT=/etc/pip-cert.pem; }

# one line for each RUN, COPY and ENV of the Dockerfile, in its order
user=root folder=/ environment="PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
inside() { # network command
    wrap=""; [ "$1" = cut ] && wrap="unshare --net"
    $wrap chroot "$root" /usr/bin/env -i $environment HOME="$([ $user = root ] && echo /root || echo /home/$user)" \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${PIP_CERT:+PIP_CERT="$PIP_CERT"} \
        setpriv --reuid=$user --regid=$user --init-groups sh -ec "cd $folder && $2"
}
sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$here/docker/Dockerfile" | while read -r step rest; do
    case $step in
    RUN) echo "+ $rest"; inside on "$rest" ;;
    ENV) environment="$environment $(echo "$rest" | sed "s|\$PATH|/usr/local/bin:/usr/bin:/bin|")" ;;
    USER) user=$rest ;;
    WORKDIR) folder=$rest ;;
    COPY)
        mkdir -p "$root/home/pfseg/src/docker"
        cp -r "$here/pfseg" "$here/conf" "$here/pyproject.toml" "$here/README.md" "$root/home/pfseg/src/"
        cp "$here/docker/warm_up.py" "$root/home/pfseg/src/docker/"
        chroot "$root" chown -R pfseg: /home/pfseg/src ;;
    ENTRYPOINT)
        for part in model.safetensors:"$checkpoint" input_path:"$images" output_path:"$maps"; do
            [ "${part%%:*}" != model.safetensors ] || touch "$root/model.safetensors"
            mount --bind "${part#*:}" "$root/${part%%:*}"
        done
        echo "+ pfseg-predict, without network"
        inside cut "pfseg-predict input=/input_path output=/output_path preset=gaofen" ;;
    esac
done
