# SPDX-FileCopyrightText: Copyright 2026 The waggle authors
# SPDX-License-Identifier: Apache-2.0
"""Images made from scratch: layers of arbitrary entries, and a layout for them."""

import gzip
import hashlib
import io
import json
import os
import tarfile

# The fastest level: the layers are small or cannot be compressed.
GZIP_LEVEL = 1


class Layer:
    """A tar archive for one layer."""

    def __init__(self):
        self.data = io.BytesIO()
        self.archive = tarfile.open(fileobj=self.data, mode="w", format=tarfile.PAX_FORMAT)

    def add(
        self, name, kind=tarfile.REGTYPE, content=b"", mode=None, uid=0, gid=0, mtime=1_700_000_000, target="", device=(0, 0), xattrs=None, parents=False
    ):
        if parents:
            self.add(os.path.dirname(name), tarfile.DIRTYPE)
        entry = tarfile.TarInfo(name)
        entry.type, entry.size, entry.linkname = kind, len(content), target
        entry.mode = mode if mode is not None else 0o755 if kind == tarfile.DIRTYPE else 0o644
        entry.uid, entry.gid = uid, gid
        entry.devmajor, entry.devminor = device
        # As text, because tarfile would convert a number to a float.
        entry.pax_headers = {"mtime": str(mtime)}
        # Attributes are bytes; tarfile expects text in which bytes that are not UTF-8 are escaped.
        for key, value in (xattrs or {}).items():
            entry.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        self.archive.addfile(entry, io.BytesIO(content))

    def end(self):
        self.archive.close()
        return self.data.getvalue()


def write_layout(layout, layers):
    """Makes a layout with one image of these archives, tagged latest; layers 1, 3, 5 and so on are compressed."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(media_type, data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    diff_ids = ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers]
    packed = [
        put("layer.v1.tar+gzip", gzip.compress(layer, GZIP_LEVEL)) if at % 2 == 0 else put("layer.v1.tar", layer)
        for at, layer in enumerate(layers)
    ]
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    config = put("config.v1+json", json.dumps(config).encode())
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": packed}
    tag = {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    index = {"schemaVersion": 2, "manifests": [put("manifest.v1+json", json.dumps(manifest).encode()) | tag]}
    (layout / "index.json").write_text(json.dumps(index))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return layout
