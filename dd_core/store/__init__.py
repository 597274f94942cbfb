"""The data root, a folder or on an object store: where every file lies, how it is written, and what may be used.

``files`` is what the rest of the library uses and knows both. ``objects`` is the object store (any that fsspec knows),
``s3`` what is particular to S3, ``leases`` its locks, ``sql`` how DuckDB gets at it. Nothing here needs torch, and
fsspec, s3fs and botocore are imported only for a root with a scheme.
"""
