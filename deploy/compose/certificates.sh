#!/bin/sh
# Makes the authority of the cluster, once, and a certificate for each container. One that is there already is renewed:
# it keeps its key, and the process takes it up while it runs.
set -eu
umask 077
ca=/var/lib/kraken/ca tls=/etc/kraken/tls
[ -e "$ca/ca.key" ] || kraken ca init --dir "$ca"
issue() { # ROLE NAME
    if [ -e "$tls/$2.crt" ]; then
        kraken ca renew --dir "$ca" --cert "$tls/$2.crt" >/dev/null
        return
    fi
    # A key without a certificate was left by who did not come to the end.
    rm -f "$tls/$2.key"
    kraken ca issue --dir "$ca" --role "$1" --name "$2" --host "$2" --host localhost --host 127.0.0.1 --out "$tls" >/dev/null
}
for n in 1 2 3; do
    issue origin "origin-$n"
    issue agent "agent-$n"
done
for role in tracker build-index proxy operator; do issue "$role" "$role"; done
