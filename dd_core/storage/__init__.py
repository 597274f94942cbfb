"""How files of the data root are read and written, in a folder or on an object store; ``dd_core.store`` says where.

``files`` is what the rest of the library uses and knows both. ``objects`` is the object store (any that fsspec knows),
``s3`` what is particular to S3, ``leases`` its locks, ``sql`` how DuckDB gets at it. Nothing here needs torch, and
fsspec, s3fs and botocore are imported only for a root with a scheme.
"""
