# busybox sh with what it does without a second process, and how it says that there is none.
set -u
count=0
while [ "$count" -lt 1000 ]; do count=$((count + 1)); done
echo "counted $count"
greet() { local name="$1"; echo "hello, $name"; }
greet world
for word in one two three; do printf '%s ' "$word"; done
echo
cd /tmp
echo 'first line' >file
echo 'second line' >>file
while read -r line; do echo "read: $line"; done <file
case "$PWD" in /tmp) echo "here" ;; *) echo "elsewhere" ;; esac
trap 'echo trapped' USR1
kill -USR1 $$
text=abcdef
echo "${text#abc} ${#text} ${text%f}"
test -s file && echo "file has a size"
umask 077
umask
