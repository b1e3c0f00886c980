#!/bin/sh
# Makes the authority of the cluster and a certificate for each container, once.
set -eu
umask 077
ca=/var/lib/kraken/ca tls=/etc/kraken/tls
[ -e "$ca/ca.key" ] || kraken ca init --dir "$ca"
issue() { # ROLE NAME
    [ -e "$tls/$2.key" ] ||
        kraken ca issue --dir "$ca" --role "$1" --name "$2" --host "$2" --host localhost --host 127.0.0.1 --out "$tls" >/dev/null
}
for n in 1 2 3; do
    issue origin "origin-$n"
    issue agent "agent-$n"
done
for role in tracker build-index proxy operator; do issue "$role" "$role"; done
