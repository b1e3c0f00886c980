"""One call of the ORAS client for Python; what came of it as a line of JSON.

    oras.py push HOST/REPOSITORY:TAG FILE:TYPE CONFIG:TYPE [SUBJECT_DIGEST SUBJECT_SIZE]
    oras.py pull HOST/REPOSITORY:TAG DIRECTORY
    oras.py referrers HOST/REPOSITORY DIGEST [TYPE]
    oras.py delete HOST/REPOSITORY TAG
"""

import json
import sys

# Its own name is the library's.
sys.path.pop(0)

import oras.client
import oras.oci

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def push(client, target, file, config, digest=None, size=None):
    subject = digest and oras.oci.Subject(MANIFEST, digest, int(size))
    answer = client.push(
        target,
        files=[file],
        manifest_config=config,
        subject=subject,
        disable_path_validation=True,
        do_chunked=True,
        chunk_size=300_000,
        quiet=True,
    )
    names = ("Docker-Content-Digest", "OCI-Subject")
    return {name: answer.headers.get(name) for name in names}


def pull(client, target, directory):
    return client.pull(target, outdir=directory)


def referrers(client, repository, digest, kind=None):
    host, name = repository.split("/", 1)
    asked = f"?artifactType={kind}" if kind else ""
    answer = client.do_request(f"http://{host}/v2/{name}/referrers/{digest}{asked}")
    answer.raise_for_status()
    return answer.json()["manifests"]


def delete(client, repository, tag):
    return client.delete_tag(client.get_container(f"{repository}:{tag}"), tag)


def main(command, target, *rest):
    client = oras.client.OrasClient(hostname=target.split("/", 1)[0], insecure=True)
    commands = {"push": push, "pull": pull, "referrers": referrers, "delete": delete}
    print(json.dumps(commands[command](client, target, *rest)))


main(*sys.argv[1:])
