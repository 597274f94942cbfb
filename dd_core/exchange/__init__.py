"""Metrics as files that other systems read and write: ``metrics.csv``, ``metrics.jsonl``, ``metrics_k{k}.jsonl``.

``columns`` says which key is which column of which table, ``exporter`` writes the files, ``importer`` reads them into
the tables of a study of which nothing was trained here. Needs no torch.
"""
