"""One call of containerd's image service, as the kubelet makes it; what came of it as a line of JSON.

    cri.py SOCKET pull|status|remove IMAGE

The messages are those of runtime.v1.ImageService, of which few fields matter here: they are written and
read as bytes.
"""

import json
import sys

import grpc

SERVICE = "/runtime.v1.ImageService"


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, data):
    """A field that holds bytes, text or a message."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def read_varint(data, at):
    number, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def fields(data):
    """The fields of a message by their numbers, each a list."""
    found, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        value, at = read_varint(data, at)
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        elif key & 7 != 0:
            raise ValueError(f"a field of wire type {key & 7}")
        found.setdefault(key >> 3, []).append(value)
    return found


def call(channel, method, image):
    request = field(1, field(1, image.encode()))
    return channel.unary_unary(f"{SERVICE}/{method}")(request, timeout=120)


def pull(channel, image):
    return {"image": fields(call(channel, "PullImage", image))[1][0].decode()}


def status(channel, image):
    found = fields(call(channel, "ImageStatus", image)).get(1)
    if not found:
        return None
    image = fields(found[0])
    texts = lambda number: [text.decode() for text in image.get(number, [])]
    return {"id": texts(1)[0], "tags": texts(2), "digests": texts(3)}


def remove(channel, image):
    call(channel, "RemoveImage", image)
    return {}


def main(socket, command, image):
    commands = {"pull": pull, "status": status, "remove": remove}
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        try:
            print(json.dumps(commands[command](channel, image)))
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")


main(*sys.argv[1:])
