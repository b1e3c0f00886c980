"""One side of a transfer by libtorrent: make, seed or leech.

Says what benches/datapath/process.rs expects: ready, and then cpu or done.
"""

import os
import sys
import time

import libtorrent as lt

PIECE = 4 << 20


def say(*words):
    print(*words, flush=True)


def session(address, rc4):
    settings = {
        "listen_interfaces": address + ":0",
        "outgoing_interfaces": address,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_incoming_utp": False,
        "enable_outgoing_utp": False,
        "allow_multiple_connections_per_ip": True,
    }
    # Both policies are numbers of the library's enumerations: forced is 0 and disabled is 2; the
    # level is 1 for plaintext and 2 for RC4.
    policy, level = (0, 2) if rc4 else (2, 1)
    settings.update(
        in_enc_policy=policy, out_enc_policy=policy, allowed_enc_level=level, prefer_rc4=rc4
    )
    return lt.session(settings)


def add(of, torrent, directory, seed):
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
    params.save_path = directory
    if seed:
        params.flags |= lt.torrent_flags.seed_mode
    return of.add_torrent(params)


def make(payload, torrent):
    files = lt.file_storage()
    lt.add_files(files, payload)
    made = lt.create_torrent(files, PIECE, flags=lt.create_torrent.v2_only)
    lt.set_piece_hashes(made, os.path.dirname(payload))
    with open(torrent, "wb") as file:
        file.write(lt.bencode(made.generate()))


def seed(torrent, directory, mode):
    address = "127.0.0.2"
    own = session(address, mode == "rc4")
    handle = add(own, torrent, directory, True)
    while not handle.status().is_seeding or own.listen_port() == 0:
        time.sleep(0.01)
    before = time.process_time()
    say("ready", address, own.listen_port())
    sys.stdin.readline()
    say("cpu", time.process_time() - before)


def leech(torrent, directory, mode, address, port):
    own = session("127.0.0.3", mode == "rc4")
    handle = add(own, torrent, directory, False)
    while handle.status().state != lt.torrent_status.downloading:
        time.sleep(0.01)
    say("ready")
    sys.stdin.readline()
    begun, before = time.monotonic(), time.process_time()
    handle.connect_peer((address, int(port)))
    while not handle.status().is_seeding:
        time.sleep(0.01)
    say("done", time.monotonic() - begun, time.process_time() - before)


if __name__ == "__main__":
    {"make": make, "seed": seed, "leech": leech}[sys.argv[1]](*sys.argv[2:])
    # The sessions' own farewells are not measured.
    os._exit(0)
