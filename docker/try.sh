#!/bin/sh
# Run the steps of docker/Dockerfile without Docker, as root: docker/try.sh <empty folder> <checkpoint> <images> <maps>
# A Debian made by debootstrap takes the place of the base image, and the network is cut for the last step.
# Mirror and package index are those of this machine: MIRROR, PIP_INDEX_URL, PIP_CERT (a file) are passed on.
set -eu
[ $# -eq 4 ] || { sed -n '2,4s/^# //p' "$0"; exit 2; }
if [ -z "${MOUNTS_APART:-}" ]; then # so that no mount is left behind or seen outside
    exec unshare --mount --propagation private env MOUNTS_APART=1 "$0" "$@"
fi
root=$(realpath "$1") checkpoint=$(realpath "$2") images=$(realpath "$3") maps=$(realpath "$4")
here=$(cd "$(dirname "$0")/.." && pwd)

[ -e "$root/bin/sh" ] || debootstrap --variant=minbase bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
for part in proc sys dev; do mount --rbind "/$part" "$root/$part"; done
cp /etc/resolv.conf "$root/etc/resolv.conf"
[ -z "${PIP_CERT:-}" ] || { cp "$PIP_CERT" "$root/etc/pip-cert.pem"; PIP_CERT=/etc/pip-cert.pem; }

# RUN, COPY, ENV, USER and WORKDIR of the Dockerfile, in its order
user=root folder=/ environment="PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
inside() { # <on|cut: the network> <command>
    wrap=""
    [ "$1" = on ] || wrap="unshare --net"
    home=/root
    [ $user = root ] || home=/home/$user
    $wrap chroot "$root" /usr/bin/env -i $environment HOME=$home \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${PIP_CERT:+PIP_CERT="$PIP_CERT"} \
        setpriv --reuid=$user --regid=$user --init-groups sh -ec "cd $folder && $2" < /dev/null
}
sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$here/docker/Dockerfile" | while read -r step rest; do
    case $step in
    RUN) echo "+ $rest"; inside on "$rest" ;;
    ENV) environment="$environment $(echo "$rest" | sed 's|\$PATH|/usr/local/bin:/usr/bin:/bin|')" ;;
    USER) user=$rest ;;
    WORKDIR) folder=$rest ;;
    COPY)
        mkdir -p "$root/home/pfseg/src/docker"
        cp -r "$here/pfseg" "$here/conf" "$here/pyproject.toml" "$here/README.md" "$here/LICENSE" "$root/home/pfseg/src/"
        cp "$here/docker/warm_up.py" "$root/home/pfseg/src/docker/"
        chroot "$root" chown -R pfseg: /home/pfseg/src ;;
    ENTRYPOINT)
        touch "$root/model.safetensors"
        mount --bind "$checkpoint" "$root/model.safetensors"
        mount --bind "$images" "$root/input_path"
        mount --bind "$maps" "$root/output_path"
        echo "+ pfseg predict, without network"
        inside cut "pfseg predict input=/input_path output=/output_path preset=gaofen" ;;
    esac
done
