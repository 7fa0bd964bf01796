# Makes the folder $1 the root of the file system, as an unprivileged process in namespaces of its own may, and starts a program there
# without capabilities. Arguments: the folder; links to copy, `--`, files and folders to show for reading, `--`, the program.
set -e
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs -o size=64m,nr_inodes=4096,mode=755 tmpfs "$1"
cd "$1"
shift
while [ "$1" != -- ]; do
    cp -P "$1" ".$1"
    shift
done
shift
mkdir dev proc etc tmp program
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p ".$1"; else : > ".$1"; fi
    mount -o bind,ro,nosuid,nodev "$1" ".$1"
    shift
done
shift
for device in null zero urandom; do
    : > "dev/$device"
    mount -o bind "/dev/$device" "dev/$device"
done
# A container may forbid this; programs seldom look there.
mount -t proc -o nosuid,nodev,noexec proc proc || :
pivot_root . .
umount -l .
cd /program
unset OLDPWD
exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
