"""Reads the Content Credentials (C2PA) of a picture without the library that wrote them, and prints them as JSON.

Usage: credential.py PICTURE [AUTHORITY.pem]. Finds the JUMBF boxes in a JPEG, PNG or WebP, and checks every assertion against the
hash in the claim, the file's bytes against the hash of the whole, and the signature of the claim with its certificate; with
an authority's file, also that this issued the certificate. Exit code 1 if anything is not as it should be; says what.
"""

import hashlib
import hmac
import json
import struct
import sys
import zlib

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

STORE, MANIFEST = "63327061", "63326d61"  # c2pa, c2ma: what the types of superboxes begin with
JUMD_LABEL, JUMD_ID, JUMD_SIGNATURE = 2, 4, 8
ALGORITHM, CERTIFICATES = 1, 33  # labels of COSE headers


class Bad(Exception):
    """The file is wrong."""


def need(condition, reason):
    if not condition:
        raise Bad(reason)


# Where each format keeps the boxes: their bytes, and the ranges of the file that hold them.


def of_jpeg(file):
    parts, ranges, at = {}, [], 2
    while file[at] == 0xFF and file[at + 1] != 0xDA:
        marker, length = file[at + 1], struct.unpack(">H", file[at + 2 : at + 4])[0]
        body = file[at + 4 : at + 2 + length]
        if marker == 0xEB and body[:2] == b"JP":
            instance, number = struct.unpack(">HI", body[2:8])
            parts.setdefault(instance, {})[number] = body[8:]
            ranges.append((at, at + 2 + length))
        at += 2 + length
    need(len(parts) == 1, f"{len(parts)} boxes in APP11 segments")
    numbered = next(iter(parts.values()))
    need(sorted(numbered) == list(range(1, len(numbered) + 1)), "APP11 segments are missing")
    # Every segment repeats the head of the box.
    return numbered[1] + b"".join(numbered[number][8:] for number in range(2, len(numbered) + 1)), ranges


def of_png(file):
    found, at = [], 8
    while at < len(file):
        length, kind = struct.unpack(">I4s", file[at : at + 8])
        body, end = file[at + 8 : at + 8 + length], at + 12 + length
        if kind == b"caBX":
            need(zlib.crc32(kind + body) == struct.unpack(">I", file[end - 4 : end])[0], "the chunk's checksum")
            found.append((body, (at, end)))
        at = end
    need(len(found) == 1, f"{len(found)} caBX chunks")
    return found[0][0], [found[0][1]]


def of_webp(file):
    found, at = [], 12
    while at < len(file):
        kind, length = struct.unpack("<4sI", file[at : at + 8])
        if kind == b"C2PA":
            found.append((file[at + 8 : at + 8 + length], (at, at + 8 + length)))
        at += 8 + length + length % 2
    need(len(found) == 1, f"{len(found)} C2PA chunks")
    return found[0][0], [found[0][1]]


def store(file):
    if file[:2] == b"\xff\xd8":
        return of_jpeg(file)
    if file[:8] == b"\x89PNG\r\n\x1a\n":
        return of_png(file)
    need(file[:4] == b"RIFF" and file[8:12] == b"WEBP", "neither JPEG, PNG nor WebP")
    return of_webp(file)


# JUMBF.


def boxes(data):
    at = 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        need(8 <= length <= len(data) - at, "a box does not fit in what is around it")
        yield kind, data[at + 8 : at + length]
        at += length


def superbox(data):
    """Type, label and contents; `data` is what hashes are of."""
    (kind, about), *contents = boxes(data)
    need(kind == b"jumd", "a superbox without description")
    toggles, rest = about[16], about[17:]
    need(toggles & JUMD_LABEL and not toggles & (JUMD_ID | JUMD_SIGNATURE), "an odd description of a superbox")
    return about[:16].hex(), rest[: rest.index(0)].decode(), contents


def labelled(contents):
    found = {}
    for kind, data in contents:
        need(kind == b"jumb", f"a box {kind!r} where only superboxes are")
        label = superbox(data)[1]
        need(label not in found, f"two boxes {label}")
        found[label] = data
    return found


def content(data, wanted):
    _, label, contents = superbox(data)
    need([kind for kind, _ in contents] == [wanted], f"{label} holds another kind of content")
    return contents[0][1]


# The checks.


def same(hashed, data, what):
    need(hmac.compare_digest(hashed, hashlib.sha256(data).digest()), f"{what} is not what was hashed")


def check_assertions(claim, found):
    """Everything that is there is claimed, and what is claimed is there."""
    claimed = {}
    for entry in claim["created_assertions"] + claim.get("gathered_assertions", []):
        label = entry["url"].rsplit("/", 1)[1]
        need(entry.get("alg", claim["alg"]) == "sha256" and label in found, f"{label} is missing, or hashed in another way")
        same(entry["hash"], found[label], label)
        claimed[label] = cbor2.loads(content(found[label], b"cbor"))
    need(set(claimed) == set(found), "an assertion that is not claimed")
    return claimed


def check_bytes(binding, file, ranges):
    """The whole file is hashed but for the boxes."""
    need(binding["alg"] == "sha256", "the file is hashed in another way")
    left_out = [(hole["start"], hole["start"] + hole["length"]) for hole in binding["exclusions"]]
    joined = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    need(left_out == joined, f"left out are {left_out}, the boxes are at {joined}")
    digest, at = hashlib.sha256(), 0
    for start, end in left_out:
        digest.update(file[at:start])
        at = end
    digest.update(file[at:])
    need(hmac.compare_digest(binding["hash"], digest.digest()), "the file's bytes are not what was hashed")


def check_signature(signature, claim):
    """Gives the algorithm and the certificates."""
    message = cbor2.loads(signature)
    need(isinstance(message, cbor2.CBORTag) and message.tag == 18, "no COSE_Sign1")
    protected, _, payload, signed = message.value
    need(payload is None, "the claim is not apart")
    headers = cbor2.loads(protected)
    chain = headers[CERTIFICATES]
    certificates = [x509.load_der_x509_certificate(der) for der in (chain if isinstance(chain, list) else [chain])]
    key = certificates[0].public_key()
    text = cbor2.dumps(["Signature1", protected, b"", claim])
    half = len(signed) // 2
    ecdsa = encode_dss_signature(int.from_bytes(signed[:half], "big"), int.from_bytes(signed[half:], "big"))
    verify = {
        -7: lambda: key.verify(ecdsa, text, ec.ECDSA(hashes.SHA256())),
        -35: lambda: key.verify(ecdsa, text, ec.ECDSA(hashes.SHA384())),
        -37: lambda: key.verify(signed, text, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()),
        -8: lambda: key.verify(signed, text),
    }
    names = {-7: "ES256", -35: "ES384", -37: "PS256", -8: "EdDSA"}
    algorithm = headers[ALGORITHM]
    need(algorithm in verify, f"algorithm {algorithm}")
    try:
        verify[algorithm]()
    except InvalidSignature as error:
        raise Bad("the claim's signature") from error
    return names[algorithm], certificates


def check_issuers(certificates, authority):
    with open(authority, "rb") as pem:
        root = x509.load_pem_x509_certificate(pem.read())
    for certificate, issuer in zip(certificates, [*certificates[1:], root]):
        if certificate != root:
            certificate.verify_directly_issued_by(issuer)


def read(path, authority=None):
    with open(path, "rb") as picture:
        file = picture.read()
    data, ranges = store(file)
    (kind, whole), = boxes(data)
    uuid, label, manifests = superbox(whole)
    need(kind == b"jumb" and uuid.startswith(STORE) and label == "c2pa", "no manifest store")
    need(len(manifests) == 1, f"{len(manifests)} manifests")
    uuid, label, parts = superbox(manifests[0][1])
    need(uuid.startswith(MANIFEST), "no manifest")
    parts = labelled(parts)
    claim_bytes = content(parts["c2pa.claim.v2"], b"cbor")
    claim = cbor2.loads(claim_bytes)
    need(claim["signature"].endswith("/c2pa.signature"), "the signature is elsewhere")
    assertions = check_assertions(claim, labelled(superbox(parts["c2pa.assertions"])[2]))
    check_bytes(assertions["c2pa.hash.data"], file, ranges)
    algorithm, certificates = check_signature(content(parts["c2pa.signature"], b"cbor"), claim_bytes)
    if authority:
        check_issuers(certificates, authority)
    signer = certificates[0].subject.rfc4514_string()
    return {"label": label, "algorithm": algorithm, "signer": signer, "claim": claim, "assertions": assertions}


if __name__ == "__main__":
    try:
        print(json.dumps(read(*sys.argv[1:]), default=lambda value: value.hex()))
    except (Bad, InvalidSignature, ValueError, KeyError) as error:
        sys.exit(f"{sys.argv[1]}: {error!r}")
